package connector

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// While a job is unfinished, a lane parks what arrives, with park_after: never as well, and delivers only what stands before the start of the
// stream. When the job is done, the lane goes on with what it has parked, and then goes live.
func TestLaneOfASinkWithAJob(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]failurePolicy{"in place": retryInPlace, "tried once": discardFailed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
				b.policy = policy
				b.backlog.begin(1, 1)
				b.run()
				b.arrive("a5", "b1")
				time.Sleep(time.Second)
				if got := len(b.calls); got != 0 {
					t.Fatalf("%d calls before the job has parked anything", got)
				}
				chunk := func(ordinal int64, ids ...string) {
					var rows []checkpoint.Outcome
					for i, id := range ids {
						e := &outbox.Event{ID: id, AggregateType: "t", AggregateID: id[:1], EventType: "e"}
						rows = append(rows, checkpoint.Outcome{
							Row: checkpoint.RowInsert, Status: checkpoint.Parked, Processor: 1, EventID: id, Position: checkpoint.Position{LSN: 1, Index: firstJobIndex + ordinal + int64(i)},
							Parked: &checkpoint.ParkedState{AggregateHash: int64(id[0]), Event: storedEvent(e, time.Time{}).Encode()},
						})
					}
					if err := b.backlog.awaitDry(t.Context()); err != nil {
						t.Fatal(err)
					}
					b.ledger.apply(rows)
					b.backlog.parked(rows[0].Position)
					b.ask(askChunk)
				}
				chunk(0, "a1", "a2")
				time.Sleep(time.Second)
				chunk(2, "a3", "a4")
				time.Sleep(time.Second)
				b.backlog.end()
				b.ask(askReread)
				time.Sleep(time.Second)
				b.arrive("a6")
				time.Sleep(time.Second)
				b.stop()
				var got []string
				for _, c := range b.calls {
					got = append(got, c.ids...)
				}
				if diff := cmp.Diff([]string{"a1", "a2", "a3", "a4", "a5", "b1", "a6"}, got); diff != "" {
					t.Error(diff)
				}
				if b.mode != modeLive {
					t.Errorf("mode %d, want the lane to be live", b.mode)
				}
			})
		})
	}
}

// memBacklog is an outbox in memory.
type memBacklog struct {
	rows  []provision.WalkRow
	chunk int
	lsn   pglogrepl.LSN
	known map[string]bool
}

func (m *memBacklog) xminReached(context.Context, uint64) (bool, error) { return true, nil }
func (m *memBacklog) owedSince(context.Context, int32) (time.Time, error) {
	return time.Time{}, nil
}

func (m *memBacklog) filters(_ context.Context, j *ledger.Job) (ledger.JobFilter, ledger.Declined, error) {
	return j.Filter, ledger.Declined{}, nil
}
func (m *memBacklog) beginWalk(context.Context) ([]byte, error) { return []byte("0"), nil }
func (m *memBacklog) countRows(context.Context, ledger.WalkQuery) (int64, error) {
	return int64(len(m.rows)), nil
}

func (m *memBacklog) estimateRows(context.Context, ledger.WalkQuery) (int64, error) {
	return 0, nil
}

func (m *memBacklog) markWAL(context.Context, int64) (pglogrepl.LSN, error) {
	return m.lsn, nil
}

func (m *memBacklog) readChunk(_ context.Context, q ledger.WalkQuery) (provision.WalkChunk, error) {
	var from int
	if _, err := fmt.Sscan(string(q.Cursor), &from); err != nil {
		return provision.WalkChunk{}, err
	}
	to := min(from+m.chunk, len(m.rows))
	c := provision.WalkChunk{Rows: m.rows[from:to]}
	c.Looked, c.Cursor, c.End = to-from, fmt.Append(nil, to), to == len(m.rows)
	return c, nil
}

func (m *memBacklog) missing(_ context.Context, q ledger.MissingQuery) (places []int, err error) {
	for i, id := range q.IDs {
		if !m.known[id] {
			places = append(places, i)
		}
	}
	return places, nil
}

// A step gives the rows that are missing and the cursor behind them to the recorder as one, after the stream is settled through what was
// read. Rows that the routes do not lead to the sink are left out, and a row that is no valid event is a dead letter of no sink.
func TestBacklogStep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		b.backlog.begin(500, 1)
		b.backlog.dry(0, 0)
		row := func(id, aggregate string) provision.WalkRow {
			return provision.WalkRow{Event: &outbox.Event{ID: id, AggregateType: aggregate, AggregateID: "1", EventType: "e"}}
		}
		odd := row("4", "")
		odd.Invalid = fmt.Errorf("aggregate_type is empty")
		table := &memBacklog{rows: []provision.WalkRow{row("1", "t"), row("2", "other"), row("3", "t"), odd, row("5", "t")}, chunk: 4, lsn: 600, known: map[string]bool{"1": true}}
		tracker := checkpoint.NewTracker(16, 1<<20, checkpoint.Position{LSN: 500, Index: -1}, 500)
		asked, letters := 0, 0
		out := make(chan checkpoint.Outcomes, 4)
		shown := &shownJob{}
		shown.begin(ledger.Job{ID: 3})
		j := &backlogJob{
			shown: shown,
			row:   ledger.Job{ID: 3, NewJob: ledger.NewJob{Processor: 1, Start: 500}, Ordinal: 7}, sink: b.sharedSink, lanes: []*lane{b.lane}, tracker: tracker,
			router: router.New([]router.Route{{Match: router.Match{AggregateType: []string{"t"}}, Sinks: []router.Sink{{Processor: 1}}}}), ask: func() { asked++ }, report: func(error) {},
			open:   func(context.Context) (backlogTable, error) { return table, nil },
			letter: func(*outbox.Event, error) { letters++ }, out: out, recorded: make(chan uint64, 1), noEvents: make(chan struct{}, 1), logger: slog.New(slog.DiscardHandler),
		}
		go j.run(t.Context())
		time.Sleep(time.Second)
		synctest.Wait()
		if len(out) != 0 || asked < 3 || asked > 10 {
			t.Fatalf("%d outcomes and %d requests for a keepalive before the stream has come there", len(out), asked)
		}
		tracker.Idle(600)
		synctest.Wait()
		first := <-out
		if len(first.Rows) != 2 || first.Job == nil {
			t.Fatalf("%d rows, step %+v; want two and the step", len(first.Rows), first.Job)
		}
		base := firstJobIndex + 3*jobRows + 7
		for i, want := range []checkpoint.Outcome{
			{EventID: "3", Processor: 1, Status: checkpoint.Parked, Position: checkpoint.Position{LSN: 500, Index: base}},
			{EventID: "4", Processor: 0, Status: checkpoint.Dead, Position: checkpoint.Position{LSN: 500, Index: base + 1}},
		} {
			got := first.Rows[i]
			if got.EventID != want.EventID || got.Processor != want.Processor || got.Status != want.Status || got.Position != want.Position || got.Row != checkpoint.RowInsert || got.Settles {
				t.Errorf("row %d: %+v, want %+v", i, got, want)
			}
		}
		if diff := cmp.Diff(checkpoint.JobStep{Job: 3, Cursor: []byte("4"), Ordinal: 9, Walked: 4, Estimate: 5}, *first.Job); diff != "" || letters != 1 {
			t.Errorf("%d letters %s", letters, diff)
		}
		first.Recorded <- first.Seq
		synctest.Wait()
		if len(out) != 0 {
			t.Error("a chunk is parked before the lane has found the rows of the one before")
		}
		b.backlog.dry(0, 1)
		synctest.Wait()
		last := <-out
		if len(last.Rows) != 1 || !last.Job.Done {
			t.Errorf("%d rows, step %+v; want the last row and the end", len(last.Rows), last.Job)
		}
		last.Recorded <- last.Seq
		synctest.Wait()
		if b.backlog.active() {
			t.Error("the job is done, and the lanes do not know")
		}
	})
}
