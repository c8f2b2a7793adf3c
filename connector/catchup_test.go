package connector

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// What is parked while the table is read stands in it unseen: the lane reads again before it lets an arrival through.
func TestLaneReadsWhatWasParkedMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		slow := b.ledger.table(1, 0, 1)
		slow.delay = func() { time.Sleep(time.Second) }
		b.table = slow
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

// A lane that catches up keeps the recorder's queue short: the outcomes of other sinks stand in it too.
func TestCatchingUpWaitsForTheRecorder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		b.lane.delivery.BatchSize = 300
		b.held = true
		for i := range int64(2000) {
			d := &delivery{hash: i, Message: sinks.Message{Event: &outbox.Event{ID: "e"}, LSN: 1, Index: i}}
			b.ledger.apply([]checkpoint.Outcome{d.outcome(1, checkpoint.Parked, false)})
		}
		b.run()
		time.Sleep(time.Hour)
		b.mu.Lock()
		if got := len(b.rows); got != 1200 {
			t.Errorf("%d rows were delivered and none recorded, want 1200: the batches of 300 that begin before 1000", got)
		}
		b.held = false
		b.mu.Unlock()
		b.recorded <- b.given
		time.Sleep(time.Hour)
		b.stop()
		if got := len(b.rows); got != 2000 {
			t.Errorf("%d outcomes, want 2000", got)
		}
	})
}
