package ledger_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// noRows takes rows and does nothing with them.
type noRows struct{}

func (noRows) Announce([]string, []uint32) error { return nil }
func (noRows) Take([][]byte, int) error          { return nil }

// openTable opens a walk of event_outbox in an order.
func (w *walking) openTable(orderBy ...string) *ledger.OutboxWalk {
	w.t.Helper()
	c := decoder.DefaultColumns()
	walk, err := ledger.Schema("public").OpenOutboxWalk(w.t.Context(), w.conn, ledger.WalkTable{
		Schema: "public", Name: "event_outbox", Columns: c.Used(), ID: c.ID, Payload: c.Payload, Metadata: c.Metadata, CreatedAt: c.CreatedAt,
		OrderBy: orderBy, MaxEventBytes: 1 << 20, Rows: noRows{},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return walk
}

// What is counted is what the walk looks at: rows of earlier times only if no index leaves them out, and also those that a condition does
// not want.
func TestWalkCount(t *testing.T) {
	t.Parallel()
	w := newWalking(t)
	at := func(hour int) time.Time { return time.Date(2024, 1, 1, hour, 0, 0, 0, time.UTC) }
	count := func(walk *ledger.OutboxWalk, q ledger.WalkQuery, patience time.Duration) int64 {
		t.Helper()
		if q.Cursor == nil {
			var err error
			if q.Cursor, err = walk.Begin(t.Context(), w.conn); err != nil {
				t.Fatal(err)
			}
		}
		n, err := walk.Count(t.Context(), w.conn, q, patience)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	timed, untimed := w.openTable("created_at", "id"), w.openTable("id")
	if n := count(timed, ledger.WalkQuery{}, time.Minute); n != 0 {
		t.Errorf("%d rows of an empty table", n)
	}
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at, tenant_id)
		select 'order', n::text, 'made', '{}', '2024-01-01 00:00+00'::timestamptz + n / 30 * interval '1 h', 't' || n % 2 from generate_series(1, 90) n`)
	where := ledger.JobFilter{Where: "tenant_id = 't1' -- theirs"}
	for name, test := range map[string]struct {
		q    ledger.WalkQuery
		want int64
	}{
		"all":           {ledger.WalkQuery{}, 90},
		"since":         {ledger.WalkQuery{Since: at(2)}, 31},
		"later since":   {ledger.WalkQuery{Since: at(1), Filter: ledger.JobFilter{Since: at(3)}}, 1},
		"filter":        {ledger.WalkQuery{Filter: where}, 90},
		"left out":      {ledger.WalkQuery{Declined: ledger.Declined{Filter: where, Before: at(2)}}, 90},
		"left out, all": {ledger.WalkQuery{Declined: ledger.Declined{Filter: ledger.JobFilter{Since: at(5)}, Before: at(2)}}, 31},
	} {
		if n := count(timed, test.q, time.Minute); n != test.want {
			t.Errorf("%s: %d rows, want %d", name, n, test.want)
		}
		if n := count(untimed, test.q, time.Minute); n != 90 {
			t.Errorf("%s, in the order of the id: %d rows, want 90", name, n)
		}
	}
	cursor, err := timed.Begin(t.Context(), w.conn)
	if err != nil {
		t.Fatal(err)
	}
	c, err := timed.Read(t.Context(), w.conn, ledger.WalkQuery{Cursor: cursor, MaxRows: 8, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for hour, want := range map[int]int64{0: 82, 1: 61, 2: 31} {
		if n := count(timed, ledger.WalkQuery{Cursor: c.Cursor, Since: at(hour)}, time.Minute); n != want {
			t.Errorf("%d rows behind the first 8 and since hour %d, want %d", n, hour, want)
		}
	}
	w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'late', 'made', '{}')")
	if n := count(timed, ledger.WalkQuery{Cursor: c.Cursor}, time.Minute); n != 82 {
		t.Errorf("%d rows behind the first 8, want 82: the last one is not of this walk", n)
	}
	if _, err := timed.Count(t.Context(), w.conn, ledger.WalkQuery{Cursor: json.RawMessage("{")}, time.Minute); err == nil {
		t.Error("a cursor that is no JSON is taken")
	}
}

// A table that takes too long to count is estimated, and so is one that nobody has the patience to count.
func TestWalkCountIsAnEstimate(t *testing.T) {
	t.Parallel()
	w := newWalking(t)
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
		select 'order', n::text, 'made', '{}' from generate_series(1, 50000) n`)
	w.exec("analyze event_outbox")
	walk := w.openTable("created_at", "id")
	cursor, err := walk.Begin(t.Context(), w.conn)
	if err != nil {
		t.Fatal(err)
	}
	w.exec("delete from event_outbox where aggregate_id <> '1'") // which the planner does not know yet
	for name, patience := range map[string]time.Duration{"no patience": 0, "1 ms": time.Millisecond} {
		n, err := walk.Count(t.Context(), w.conn, ledger.WalkQuery{Cursor: cursor}, patience)
		if err != nil || n < 40_000 || n > 60_000 {
			t.Errorf("%s: %d rows, %v, want about 50000", name, n, err)
		}
	}
	if n, err := walk.Count(t.Context(), w.conn, ledger.WalkQuery{Cursor: cursor}, time.Minute); err != nil || n != 1 {
		t.Errorf("counted: %d rows, %v", n, err)
	}
}
