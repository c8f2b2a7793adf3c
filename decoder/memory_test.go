package decoder

import (
	"encoding/binary"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

func TestEventsDoNotOverlap(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, DefaultColumns(), defaultRelation...)
	type row struct{ id, payload, tenant string }
	var rows []row
	var messages []Message
	for i := range 3000 { // several slabs and arenas, and rows of their own
		size := i % 700
		if i%100 == 0 {
			size = OwnSize - 100 + i
		}
		r := row{strconv.Itoa(i), strings.Repeat(string(rune('a'+i%26)), size), "tenant-" + strconv.Itoa(i)}
		rows = append(rows, r)
		messages = append(messages, decodeRow(t, d, r.id, "order", "42", "paid", "1", r.payload, "{}", null, null, r.tenant, "", null))
	}
	for i, m := range messages {
		e := m.Event
		if cap(e.Payload) != len(e.Payload) || cap(e.Metadata) != len(e.Metadata) {
			t.Fatalf("event %d: an append would write into another field", i)
		}
		if got := (row{e.ID, string(e.Payload), e.TenantID}); got != rows[i] || string(e.Metadata) != "{}" || e.AggregateID != "42" {
			t.Fatalf("event %d was overwritten: %+v", i, e)
		}
	}
}

func TestNamesAreShared(t *testing.T) {
	t.Parallel()
	n := make(names)
	for i := range 3 * maxNames {
		if s := strconv.Itoa(i); n.string([]byte(s)) != s {
			t.Fatalf("another name for %s", s)
		}
	}
	if len(n) > maxNames {
		t.Errorf("%d names kept, want %d at most", len(n), maxNames)
	}
	clear(n)
	n.string(make([]byte, maxNameSize+1))
	if len(n) != 0 {
		t.Error("a long name was kept")
	}
}

func TestAllocations(t *testing.T) {
	d := newDecoder(t, DefaultColumns(), defaultRelation...)
	message := benchmarkRow()
	const rows = 10_000
	n := testing.AllocsPerRun(3, func() {
		for range rows {
			decode(t, d, message)
		}
	})
	if perRow := n / rows; perRow > 0.01 {
		t.Errorf("%v allocations a row, want 0.01 at most", perRow)
	}
	retries := insertMessage(testOID, "1", "order", "42", "paid", "1", "{}", "{}", null, "7", null, null, null)
	decode(t, d, retries)
	if n := testing.AllocsPerRun(100, func() { decode(t, d, retries) }); n > 0 {
		t.Errorf("%v allocations for a row with max_retries, want none", n)
	}
}

// TestLengthsAreNotTrusted: how much memory is allocated depends on the bytes that are there, not on the lengths that they
// claim.
func TestLengthsAreNotTrusted(t *testing.T) {
	relation := relationMessage(testOID)
	binary.BigEndian.PutUint16(relation[len(relation)-2:], 65535)
	d := newDecoder(t, DefaultColumns(), defaultRelation...)
	insert := insertMessage(testOID, "1", "order", "42", "paid", "1", "{}", "{}", null, null, null, null, null)
	binary.BigEndian.PutUint32(insert[9:], 0xfffffff0)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, message := range [][]byte{relation, insert} {
		if _, err := d.Decode(message); err == nil {
			t.Errorf("%q is accepted", message)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
		t.Errorf("%d bytes allocated", n)
	}
}
