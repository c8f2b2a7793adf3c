package decoder

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// decodePieces decodes a message of at least 8 bytes with Large, in pieces of this size.
func decodePieces(d *Decoder, message []byte, size int) (Message, error) {
	if len(message) < 8 {
		return Message{}, errShort
	}
	m, l, err := d.Large(slices.Clone(message[:8]), len(message)-8)
	if err != nil || l == nil {
		return m, err
	}
	for piece := range slices.Chunk(slices.Clone(message[8:]), size) {
		if err := l.Write(piece); err != nil {
			return Message{}, err
		}
		clear(piece) // it belongs to the stream
	}
	return l.End()
}

// sameMessage compares two messages. If one is refused, the other must be too, but perhaps for another reason.
func sameMessage(a Message, errA error, b Message, errB error) bool {
	if errA != nil || errB != nil {
		// A bytea that was given up is not checked any more.
		return errA != nil && errB != nil || errors.Is(errA, errNotHex) || a.Invalid != nil || b.Invalid != nil
	}
	text := func(err error) string { return fmt.Sprint(err) }
	return a.Kind == b.Kind && a.Size == b.Size && text(a.Invalid) == text(b.Invalid) && cmp.Equal(a.Event, b.Event)
}

func TestLarge(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 5000)
	bytea := slices.Clone(defaultRelation)
	bytea[5].oid = pgtype.ByteaOID
	withMore := append(slices.Clone(defaultRelation), column{"note", pgtype.TextOID})
	shared := DefaultColumns()
	shared.EventType, shared.ID = shared.AggregateType, shared.Payload
	for name, test := range map[string]struct {
		columns  Columns
		relation []column
		row      []string
	}{
		"a payload":                  {DefaultColumns(), defaultRelation, []string{"1", "order", "42", "paid", "1", big, "{}", "2026-11-24 03:58:21+00", "3", "t", "c", null}},
		"a payload of nothing":       {DefaultColumns(), defaultRelation, []string{"1", "order", "42", "paid", "1", "", big, null, null, null, null, null}},
		"no payload":                 {DefaultColumns(), defaultRelation, []string{"1", "order", "42", "paid", "1", null, big, null, null, null, null, null}},
		"a bytea":                    {DefaultColumns(), bytea, []string{"1", "order", "42", "paid", "1", `\x` + strings.Repeat("0aF9", 900), "{}", null, null, null, null, null}},
		"an empty bytea":             {DefaultColumns(), bytea, []string{"1", "order", "42", "paid", "1", `\x`, big, null, null, null, null, null}},
		"half a byte":                {DefaultColumns(), bytea, []string{"1", "order", "42", "paid", "1", `\x123`, "{}", null, null, null, null, null}},
		"no hex":                     {DefaultColumns(), bytea, []string{"1", "order", "42", "paid", "1", `\x12zz`, "{}", null, null, null, null, null}},
		"another format":             {DefaultColumns(), bytea, []string{"1", "order", "42", "paid", "1", `\\000`, "{}", null, null, null, null, null}},
		"too large a payload":        {DefaultColumns(), defaultRelation, []string{"1", "order", "42", "paid", "1", big + big, "{}", null, null, null, null, null}},
		"too large a bytea":          {DefaultColumns(), bytea, []string{"1", "order", "42", "paid", "1", `\x` + big + big + big, "{}", null, null, null, null, null}},
		"too large together":         {DefaultColumns(), defaultRelation, []string{"1", "order", "42", "paid", "1", big, big, null, null, null, big, null}},
		"too large behind a payload": {DefaultColumns(), defaultRelation, []string{"1", "order", "42", "paid", "1", "{}", big + big, null, null, null, null, null}},
		"too large an id":            {DefaultColumns(), defaultRelation, []string{big + big, "order", big, "paid", "1", "{}", "{}", null, null, null, null, null}},
		"null and too large":         {DefaultColumns(), defaultRelation, []string{null, "order", null, "paid", "1", big + big, "{}", null, null, null, null, null}},
		"another column":             {DefaultColumns(), withMore, []string{"1", "order", "42", "paid", "1", "{}", "{}", null, null, null, null, null, big + big}},
		"a column of two fields":     {shared, defaultRelation, []string{"1", "order", "42", "-", "1", big, "{}", null, null, null, null, null}},
		"a bytea of two fields":      {shared, bytea, []string{"1", "order", "42", "-", "1", `\x00ff`, big, null, null, null, null, null}},
		"too large for two fields":   {shared, defaultRelation, []string{"1", "order", "42", "-", "1", big + big, "{}", null, null, null, null, null}},
		"too many columns":           {DefaultColumns(), defaultRelation, []string{"1", "order", "42", "paid", "1", big, "{}", null, null, null, null, null, null}},
		"no number":                  {DefaultColumns(), defaultRelation, []string{"1", "order", "42", "paid", "many", big, "{}", null, null, null, null, null}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := New(Table{OID: testOID, Columns: test.columns}, 8000)
			if _, err := d.Decode(relationMessage(testOID, test.relation...)); err != nil {
				t.Fatal(err)
			}
			message := insertMessage(testOID, test.row...)
			want, wantErr := d.Decode(message)
			for _, size := range []int{1, 2, 3, 7, 1000, len(message)} {
				got, err := decodePieces(d, message, size)
				if !sameMessage(want, wantErr, got, err) {
					t.Errorf("in pieces of %d: %+v, %v\nas a whole: %+v, %v", size, got, err, want, wantErr)
				}
			}
			for _, cut := range []int{1, 5, len(message) - 9} {
				if _, err := decodePieces(d, message[:len(message)-cut], 1000); err == nil {
					t.Errorf("a row without its last %d bytes is decoded", cut)
				}
			}
		})
	}
}

func TestLargeOfNoInterest(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, DefaultColumns(), defaultRelation...)
	decode(t, d, relationMessage(testOID+1, column{"a", pgtype.TextOID}))
	for kind, message := range map[Kind][]byte{
		KindInsert:  insertMessage(testOID+1, strings.Repeat("x", 1000)),
		KindIgnored: []byte("M" + strings.Repeat("x", 1000)),
	} {
		m, l, err := d.Large(message[:8], len(message)-8)
		if err != nil || l != nil || m.Kind != kind || m.Event != nil {
			t.Errorf("%q: %+v, %v, %v", message[0], m, l, err)
		}
	}
	for _, message := range [][]byte{insertMessage(testOID+2, "x", "y"), []byte("Rxxxxxxx"), []byte("?xxxxxxx")} {
		if _, _, err := d.Large(message[:8], 1<<20); err == nil {
			t.Errorf("%q: no error", message[0])
		}
	}
}

// A row that is too large takes only the memory of what is kept of it.
func TestLargeMemory(t *testing.T) {
	const limit, size = 1 << 20, 200 << 20
	d := New(Table{OID: testOID, Columns: DefaultColumns()}, limit)
	decode(t, d, relationMessage(testOID, defaultRelation...))
	row := insertMessage(testOID, "1", "order", "42", "paid", "1", "PAYLOAD", `{"a": 1}`, null, null, "t", null, null)
	at := strings.Index(string(row), "PAYLOAD")
	head, tail := slices.Clone(row[:at]), row[at+len("PAYLOAD"):]
	copy(head[at-4:], []byte{size >> 24, size >> 16 & 0xff, 0, 0})
	piece := make([]byte, 256<<10)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, l, err := d.Large(head, size+len(tail))
	for range size / len(piece) {
		if err == nil {
			err = l.Write(piece)
		}
	}
	if err == nil {
		err = l.Write(tail)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := l.End()
	runtime.ReadMemStats(&after)
	if err != nil || m.Event == nil || m.Event.Payload != nil || m.Event.AggregateID != "42" || string(m.Event.Metadata) != `{"a": 1}` || m.Event.TenantID != "t" {
		t.Fatalf("%+v, %v", m, err)
	}
	if m.Invalid == nil || !strings.Contains(m.Invalid.Error(), fmt.Sprintf("takes %d bytes", size+len("1order42paid1t")+len(`{"a": 1}`))) {
		t.Errorf("invalid: %v, want the size of the whole", m.Invalid)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > limit {
		t.Errorf("%d bytes allocated for a row of %d, want %d at most", n, size, limit)
	}
}

// Whoever keeps the id of a large event does not keep its payload in memory. Nor does an event before or after it.
func TestLargeEventsShareNothing(t *testing.T) {
	d := New(Table{OID: testOID, Columns: DefaultColumns()}, 64<<20)
	decode(t, d, relationMessage(testOID, defaultRelation...))
	payload := strings.Repeat("x", 4<<20)
	var ids []string
	var small []*outbox.Event
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 20 {
		message := insertMessage(testOID, fmt.Sprint("id-", i), "order", "42", "paid", "1", payload, "{}", null, null, null, null, null)
		m, err := d.Decode(message)
		if err != nil || m.Invalid != nil {
			t.Fatal(err, m.Invalid)
		}
		ids = append(ids, m.Event.ID)
		small = append(small, decodeRow(t, d, fmt.Sprint(i), "order", "42", "paid", "1", "{}", "{}", null, null, null, null, null).Event)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 12<<20 {
		t.Errorf("%d ids keep %d MiB", len(ids), kept>>20)
	}
	runtime.KeepAlive(ids)
	runtime.KeepAlive(small)
}
