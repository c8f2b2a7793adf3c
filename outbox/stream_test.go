package outbox_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// stream is what the connector would read: our publication, pgoutput and decoder, by way of SQL.
type stream struct {
	t       *testing.T
	conn    *pgx.Conn
	slot    string
	decoder *decoder.Decoder
}

func openStream(t *testing.T, db *pgtest.Database) *stream {
	t.Helper()
	s := &stream{t: t, conn: db.Conn(t), slot: db.Slot(t)}
	table := decoder.Table{Columns: decoder.DefaultColumns()}
	err := s.conn.QueryRow(t.Context(), "select 'event_outbox'::regclass::oid").Scan(&table.OID)
	if err != nil {
		t.Fatal(err)
	}
	s.decoder = decoder.New(table, 64<<20)
	// The settings are those that the connector pins.
	_, err = s.conn.Exec(t.Context(), `create publication streamed for table event_outbox with (publish = 'insert');
		set datestyle = 'ISO'; set timezone = 'UTC'`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.conn.Exec(t.Context(), "select pg_create_logical_replication_slot($1, 'pgoutput')", s.slot); err != nil {
		t.Fatal(err)
	}
	return s
}

// read returns the events that were committed since it was called last.
func (s *stream) read() []outbox.Event {
	s.t.Helper()
	rows, err := s.conn.Query(s.t.Context(), `select data from pg_logical_slot_get_binary_changes($1, null, null,
		'proto_version', '1', 'publication_names', 'streamed')`, s.slot)
	if err != nil {
		s.t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		s.t.Fatal(err)
	}
	var events []outbox.Event
	for _, data := range messages {
		m, err := s.decoder.Decode(data)
		if err != nil {
			s.t.Fatal(err)
		}
		if m.Invalid != nil {
			s.t.Fatalf("a row that is no event: %v", m.Invalid)
		}
		if m.Kind == decoder.KindInsert {
			events = append(events, *m.Event)
		}
	}
	return events
}
