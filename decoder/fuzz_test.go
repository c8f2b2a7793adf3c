package decoder

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// FuzzDecode announces a relation and sends a message after it. Nothing may panic, and an event may take no more memory
// than its row.
func FuzzDecode(f *testing.F) {
	relation := relationMessage(testOID, defaultRelation...)
	bytea := slices.Clone(defaultRelation)
	bytea[5].oid = pgtype.ByteaOID
	f.Add(relation, insertMessage(testOID, "1", "order", "42", "paid", "1", "{}", "{}", null, "3", null, "c", null))
	f.Add(relation, insertMessage(testOID, null, null, "", "", "x", "{}", "{}", "2026-11-24 03:58:21+05:45", "", "", "", ""))
	f.Add(relationMessage(testOID, bytea...), insertMessage(testOID, "1", "order", "42", "paid", "1", `\x00ff`, "{}", null, null, null, null, null))
	f.Add(relationMessage(testOID, bytea...), insertMessage(testOID, "1", "order", "42", "paid", "1", `\x00f`, "{}", null, null, null, null, null))
	f.Add(relationMessage(5, column{"a", 25}), insertMessage(5, "1"))
	for _, r := range recordings(f) {
		var announced []byte
		for _, m := range r.messages {
			if m[0] == 'R' {
				announced = m
			}
			f.Add(announced, m)
		}
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		const limit = 200
		oid := uint32(testOID)
		if len(first) >= 5 {
			oid = binary.BigEndian.Uint32(first[1:])
		}
		for _, columns := range []Columns{DefaultColumns(), mappedColumns} {
			d := New(Table{OID: oid, Columns: columns}, limit)
			for _, message := range [][]byte{first, second, first, second} {
				message = slices.Clone(message)
				m, err := d.Decode(message)
				if pieces, errPieces := decodePieces(d, message, 3); len(message) >= 8 && message[0] == 'I' && !sameMessage(m, err, pieces, errPieces) {
					t.Errorf("in pieces: %+v, %v; as a whole: %+v, %v", pieces, errPieces, m, err)
				}
				if err != nil || m.Event == nil {
					continue
				}
				if m.Size > eventSize+limit {
					t.Errorf("size %d, want %d at most", m.Size, eventSize+limit)
				}
				e := m.Event
				texts := len(e.ID) + len(e.AggregateType) + len(e.AggregateID) + len(e.EventType) + len(e.Payload) +
					len(e.Metadata) + len(e.TenantID) + len(e.CorrelationID) + len(e.CausationID)
				if texts > m.Size-eventSize {
					t.Errorf("%d bytes of text in an event of size %d", texts, m.Size)
				}
				before := copyOf(e)
				for i := range message {
					message[i] ^= 0xff
				}
				if diff := cmp.Diff(before, e); diff != "" {
					t.Errorf("the event lies in the message: %s", diff)
				}
			}
		}
	})
}

func copyOf(e *outbox.Event) *outbox.Event {
	c := *e
	c.Payload, c.Metadata = slices.Clone(e.Payload), slices.Clone(e.Metadata)
	for _, s := range []*string{&c.ID, &c.AggregateType, &c.AggregateID, &c.EventType, &c.TenantID, &c.CorrelationID, &c.CausationID} {
		*s = string([]byte(*s))
	}
	return &c
}
