package connector

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

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
