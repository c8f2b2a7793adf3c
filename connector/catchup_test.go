package connector

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Rows that are parked during a read of the table are not in its result. So the lane reads again before it delivers an arrival.
func TestLaneReadsWhatWasParkedMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		slow := b.ledger.table(1, 0, 1)
		slow.delay = func() { time.Sleep(time.Second) }
		b.source.parked = slow
		b.run()
		time.Sleep(1500 * time.Millisecond) // the first read has seen nothing, and has not come back
		b.arrive("a1")
		b.ask(askPark)
		time.Sleep(time.Second)
		b.arrive("a2")
		time.Sleep(time.Minute)
		b.stop()
		check(t, "calls", b.gotCalls(), "[a1]@4s [a2]@6s ")
	})
}

// A lane that catches up may have at most 1,000 unrecorded rows when it begins a batch, so that it does not delay the outcomes of other sinks.
func TestCatchingUpWaitsForTheRecorder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		b.lane.delivery.BatchSize = 300
		b.held = true
		for i := range int64(2000) {
			d := &delivery{hash: i, Message: sinks.Message{Event: &outbox.Event{ID: "e"}, LSN: 1, Index: i}}
			b.ledger.apply([]checkpoint.Outcome{d.outcome(1, checkpoint.Parked)})
		}
		b.run()
		time.Sleep(time.Hour)
		b.mu.Lock()
		if got := len(b.rows); got != 1200 {
			t.Errorf("%d rows were delivered and none recorded, want 1200: the batches of 300 that begin before 1000", got)
		}
		b.held = false
		b.mu.Unlock()
		b.recorder.recorded <- b.recorder.given
		time.Sleep(time.Hour)
		b.stop()
		if got := len(b.rows); got != 2000 {
			t.Errorf("%d outcomes, want 2000", got)
		}
	})
}

// The lanes of a sink take turns with rows that are larger than an ordinary read, so that one such row is in memory at a time. Small rows are
// delivered meanwhile. A lane gives up its turn even if its Deliver call is never answered.
func TestLargeRowsTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const lanes = 3
		running, most := 0, 0
		var b *laneBench
		b = newLaneBench(t, func(ctx context.Context, _ int, batch []sinks.Message) []error {
			large := batch[0].Event.ID[0] == 'L'
			if large {
				b.mu.Lock()
				running++
				most = max(most, running)
				b.mu.Unlock()
				if batch[0].Event.ID == "L1" { // is never answered
					<-ctx.Done()
				} else {
					time.Sleep(time.Second)
				}
				b.mu.Lock()
				running--
				b.mu.Unlock()
			}
			errs := make([]error, len(batch))
			for i := range batch {
				if batch[i].Event.ID == "L1" {
					errs[i] = sinks.ErrUnavailable
				}
			}
			return errs
		})
		for i := range int64(30) {
			d := &delivery{hash: i, Message: sinks.Message{Event: &outbox.Event{ID: fmt.Sprint("s", i)}, LSN: 1, Index: i}}
			if i%5 == 1 {
				d.Event.ID = fmt.Sprint("L", i)
			}
			b.ledger.apply([]checkpoint.Outcome{d.outcome(1, checkpoint.Parked)})
		}
		b.configure()
		all := []*lane{b.lane}
		for n := range lanes {
			table := b.ledger.table(1, n, lanes)
			table.large = func(r *memRow) bool { return r.id[0] == 'L' }
			if n > 0 {
				all = append(all, newLane(b.sharedSink, n, rowSource{parked: table, address: ofTestEvent}, b.outcomes))
			}
			all[n].source.parked = table
		}
		b.breaker.attach(all)
		ended := make(chan error, lanes)
		for _, l := range all[1:] {
			go func() { ended <- l.run(b.work, b.deliver) }()
		}
		b.run()
		time.Sleep(40 * time.Second)
		b.mu.Lock()
		done := map[string]bool{}
		for _, c := range b.calls {
			for _, id := range c.ids {
				done[id] = true
			}
		}
		if len(done) != 30 || most != 1 {
			t.Errorf("%d rows of 30 were tried within 40 s, of the large ones %d at a time; want all, and one", len(done), most)
		}
		b.mu.Unlock()
		for _, l := range all[1:] {
			close(l.in)
		}
		for range all[1:] {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		b.stop()
	})
}
