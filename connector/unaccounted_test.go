package connector

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

// fakeTable is an outbox of which the ledger does not know some events. Row n has the id n.
type fakeTable struct {
	rows      int
	unknown   map[int]bool
	written   pglogrepl.LSN // the LSN of a witness
	confirmed pglogrepl.LSN
	chunks    int // how many were read
}

func (f *fakeTable) compareChunk(_ context.Context, q ledger.VerifyQuery, from *ledger.OutboxKey, take func(*ledger.VerifyPoint, *ledger.Unknown) error) (ledger.VerifyChunk, error) {
	f.chunks++
	first := 0
	if from != nil && from.ID != "" {
		_, _ = fmt.Sscan(from.ID, &first)
	}
	c := ledger.VerifyChunk{Witness: ledger.Witness{Snapshot: "1:1:", LSN: f.written.String()}, UpTo: time.Now(), End: true}
	for n := first + 1; n <= f.rows; n++ {
		if n > first+compareChunkRows {
			c.End = false
			break
		}
		c.Last = &ledger.OutboxKey{At: "x", ID: fmt.Sprint(n)}
		if f.unknown[n] {
			if err := take(&c.VerifyPoint, &ledger.Unknown{Processor: q.Processors[0], ID: fmt.Sprint(n)}); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

func (f *fakeTable) compareEvents(_ context.Context, q ledger.VerifyQuery, take func(*ledger.VerifyPoint, *ledger.Unknown) error) (ledger.VerifyPoint, error) {
	lsn, err := pglogrepl.ParseLSN(q.Witness.LSN)
	p := ledger.VerifyPoint{Decides: f.confirmed >= lsn}
	for _, id := range q.IDs {
		var n int
		_, _ = fmt.Sscan(id, &n)
		if f.unknown[n] {
			if err := take(&p, &ledger.Unknown{Processor: q.Processors[0], ID: id, Seen: true}); err != nil {
				return p, err
			}
		}
	}
	return p, err
}

// What is unknown counts only once the stream is settled beyond it, and no longer when the ledger knows it. Nothing is read again while
// nothing was settled.
func TestAccounts(t *testing.T) {
	t.Parallel()
	cfg := silentConfig()
	cfg.Sinks = []Sink{{Name: "a"}}
	cfg.Routes = []Route{{Sinks: []string{"a"}}}
	c := newConnector(cfg, nil)
	f := &fakeTable{rows: 2 * compareChunkRows, unknown: map[int]bool{5: true, 1500: true}, written: 100}
	tracker := checkpoint.NewTracker(10, 1000, checkpoint.Position{LSN: 50, Index: -1}, 50)
	owing := NewOwing(&c.cfg, []ledger.VerifySink{{Processor: 1, Name: "a"}})
	a := &accounts{}
	step := func() {
		t.Helper()
		step := compareStep{table: f, owing: owing, query: owing.Query("s"), tracker: tracker}
		if err := a.decide(t.Context(), step); err != nil {
			t.Fatal(err)
		}
		if err := a.chunk(t.Context(), step); err != nil {
			t.Fatal(err)
		}
		a.tell(c)
	}
	missing := func() int64 {
		if n := a.shown.Load().Missing; n != nil {
			return *n
		}
		return -1
	}
	due := func() bool { return a.due(time.Now(), tracker.Snapshot(time.Now()).Prefix) }
	confirm := func(lsn pglogrepl.LSN) {
		f.confirmed = lsn
		tracker.Idle(lsn)
		tracker.Publish(tracker.Settled())
	}
	for range 3 {
		step()
	}
	if a.pass.running || missing() != 0 || f.chunks != 2 || !due() {
		t.Errorf("before the stream has come so far: %d missing, %d chunks, %+v", missing(), f.chunks, a.pass)
	}
	delete(f.unknown, 1500) // it has come
	confirm(200)
	step()
	if missing() != 1 || a.shown.Load().Example != "5" {
		t.Errorf("%+v is shown", a.shown.Load())
	}
	for a.pass.running {
		step()
	}
	chunks := f.chunks
	if due() {
		t.Error("an idle outbox is compared again")
	}
	if step(); f.chunks != chunks {
		t.Error("an idle outbox was read again")
	}
	a.checked = time.Now().Add(-compareRecheck)
	delete(f.unknown, 5) // somebody has written it once more
	if !due() {
		t.Error("what is missing is not looked at again")
	}
	if step(); missing() != 0 {
		t.Errorf("%d are missing still", missing())
	}
	// A later pass begins a while before the last one, and finds what was committed late.
	f.unknown[7] = true
	confirm(300)
	step()
	if a.pass.all || a.allAt.IsZero() {
		t.Errorf("%+v", a.pass)
	}
	if step(); missing() != 1 {
		t.Errorf("%d are missing, want 1", missing())
	}
}

// On an idle outbox the position follows the clock, but not beyond what is not decided yet.
func TestAccountsOfAnIdleOutbox(t *testing.T) {
	t.Parallel()
	c := newConnector(silentConfig(), nil)
	a := &accounts{}
	began := time.Now()
	if a.idle(c, began); a.shown.Load() != nil {
		t.Error("a comparison is shown that has never begun")
	}
	a.upTo = began.Add(-time.Hour)
	a.tell(c)
	a.unknown = []unknownEvents{{ids: []string{"5"}}}
	if a.idle(c, began); !a.shown.Load().UpTo.Equal(began.Add(-time.Hour)) {
		t.Errorf("all is compared up to %s, and an event is unknown still", a.shown.Load().UpTo)
	}
	a.unknown = nil
	a.idle(c, began)
	if got := a.shown.Load(); !got.UpTo.Equal(began) || got.WorkedAt.Before(began) {
		t.Errorf("%+v", got)
	}
	if a.idle(c, began.Add(-time.Minute)); !a.shown.Load().UpTo.Equal(began) {
		t.Errorf("the position has gone back to %s", a.shown.Load().UpTo)
	}
}

// Who a route does not lead to, who came later, and whom a job has left out is owed nothing.
func TestOwing(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	later, earlier := at.Add(time.Hour), at.Add(-time.Hour)
	cfg := &Config{Sinks: []Sink{{Name: "a"}, {Name: "b"}}, Routes: []Route{{Match: router.Match{EventType: []string{"made"}}, Sinks: []string{"a"}}}}
	for name, test := range map[string]struct {
		sink ledger.VerifySink
		u    ledger.Unknown
		p    ledger.VerifyPoint
		want Standing
	}{
		"missing":            {ledger.VerifySink{Name: "a"}, ledger.Unknown{Seen: true}, ledger.VerifyPoint{Decides: true}, Missing},
		"too new":            {ledger.VerifySink{Name: "a"}, ledger.Unknown{}, ledger.VerifyPoint{Decides: true}, Pending},
		"not settled so far": {ledger.VerifySink{Name: "a"}, ledger.Unknown{Seen: true}, ledger.VerifyPoint{}, Pending},
		"a job runs":         {ledger.VerifySink{Name: "a", Unfinished: true}, ledger.Unknown{Seen: true}, ledger.VerifyPoint{Decides: true}, Pending},
		"no route":           {ledger.VerifySink{Name: "b"}, ledger.Unknown{Seen: true}, ledger.VerifyPoint{Decides: true}, NotOwed},
		"before the sink":    {ledger.VerifySink{Name: "a", Since: &later}, ledger.Unknown{Seen: true}, ledger.VerifyPoint{Decides: true}, NotOwed},
		"since the sink":     {ledger.VerifySink{Name: "a", Since: &earlier}, ledger.Unknown{Seen: true}, ledger.VerifyPoint{Decides: true}, Missing},
		"log dropped":        {ledger.VerifySink{Name: "a"}, ledger.Unknown{Seen: true}, ledger.VerifyPoint{Decides: true, LogDroppedUntil: later}, Expired},
		"log kept":           {ledger.VerifySink{Name: "a"}, ledger.Unknown{Seen: true}, ledger.VerifyPoint{Decides: true, LogDroppedUntil: earlier}, Missing},
		"left out by a job":  {ledger.VerifySink{Name: "a", Filter: "f", Filed: &later}, ledger.Unknown{Seen: true, Matches: []bool{false}}, ledger.VerifyPoint{Decides: true}, NotOwed},
		"wanted by the job":  {ledger.VerifySink{Name: "a", Filter: "f", Filed: &later}, ledger.Unknown{Seen: true, Matches: []bool{true}}, ledger.VerifyPoint{Decides: true}, Missing},
		"after the job":      {ledger.VerifySink{Name: "a", Filter: "f", Filed: &earlier}, ledger.Unknown{Seen: true, Matches: []bool{false}}, ledger.VerifyPoint{Decides: true}, Missing},
	} {
		test.sink.Processor, test.u.Processor, test.u.EventType, test.u.CreatedAt = 3, 3, "made", &at
		if got := NewOwing(cfg, []ledger.VerifySink{test.sink}).Judge(&test.p, &test.u); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}
