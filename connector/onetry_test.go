package connector

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// A sink that is tried once keeps nothing for later: a message that it does not accept is discarded, whatever the reason. Later messages are
// delivered.
func TestLaneOneTry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return fail(batch, map[string]error{
				"a1": fmt.Errorf("dial: %w", sinks.ErrUnavailable), "b1": errRefused, "c1": fmt.Errorf("too large: %w", sinks.ErrPermanent),
			})
		})
		b.policy = discardFailed
		b.run()
		b.arrive("a1", "b1", "c1", "a2")
		time.Sleep(time.Millisecond)
		check(t, "calls", b.gotCalls(), "[a1 b1 c1]@0s [a2]@0s ")
		b.stop()
		check(t, "outcomes", b.gotRows(), "a1:discarded#1 b1:discarded#1 c1:discarded#1 a2:delivered#1 ")
	})
}

// A message that the sink puts off is discarded as well: if the lane waited for its time, all others would wait with it.
func TestLaneOneTryPutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return fail(batch, map[string]error{"a1": sinks.PutOff(20 * time.Second)})
		})
		b.policy = discardFailed
		b.run()
		b.arrive("a1", "b1", "a2")
		time.Sleep(time.Second)
		b.arrive("c1")
		time.Sleep(time.Second)
		b.stop()
		check(t, "calls", b.gotCalls(), "[a1 b1 a2]@0s [a2]@0s [c1]@1s ")
		check(t, "outcomes", b.gotRows(), "a1:discarded#0 b1:delivered#1 a2:delivered#1 c1:delivered#1 ")
	})
}

// A discarded message is recorded before the lane's next Deliver call. Otherwise it would be delivered after later messages if the connector
// crashed.
func TestDiscardedIsRecordedFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return fail(batch, map[string]error{"a1": errRefused})
		})
		b.policy, b.held = discardFailed, true
		b.run()
		b.recorder.recorded <- 0
		b.arrive("a1", "a2")
		time.Sleep(10 * time.Second)
		check(t, "calls before it is recorded", b.gotCalls(), "[a1 a2]@0s ")
		b.mu.Lock()
		b.held = false
		b.mu.Unlock()
		b.recorder.recorded <- 1
		time.Sleep(10 * time.Second)
		check(t, "calls", b.gotCalls(), "[a1 a2]@0s [a2]@10s ")
		b.stop()
	})
}
