package decoder

import (
	"strings"
	"testing"
)

// benchmarkRow makes a row of 12 columns and about 500 bytes.
func benchmarkRow() []byte {
	return insertMessage(testOID, "0197a3c2-5d1e-7a4b-8c3d-2e1f0a9b8c7d", "order", "0197a3c2-0000-7a4b-8c3d-2e1f0a9b8c7d",
		"order.paid", "1", `{"data":"`+strings.Repeat("x", 290)+`"}`, `{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}`,
		"2026-11-24 03:58:21.123456+00", null, "tenant-1", "correlation-1", null)
}

func BenchmarkInsert(b *testing.B) {
	d := New(Table{OID: testOID, Columns: DefaultColumns()}, 1<<20)
	if _, err := d.Decode(relationMessage(testOID, defaultRelation...)); err != nil {
		b.Fatal(err)
	}
	row := benchmarkRow()
	b.SetBytes(int64(len(row)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Decode(row); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTransaction(b *testing.B) {
	d := New(Table{OID: testOID, Columns: DefaultColumns()}, 1<<20)
	if _, err := d.Decode(relationMessage(testOID, defaultRelation...)); err != nil {
		b.Fatal(err)
	}
	messages := [][]byte{beginMessage(1, 1, 1), benchmarkRow(), commitMessage(1, 2, 1)}
	b.ReportAllocs()
	for b.Loop() {
		for _, m := range messages {
			if _, err := d.Decode(m); err != nil {
				b.Fatal(err)
			}
		}
	}
}
