package connector

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Each message that was tried and not accepted is counted by why, and each further try. What was not begun is neither.
func TestErrorsAreCountedByClass(t *testing.T) {
	t.Parallel()
	all := map[string]error{
		"a1": fmt.Errorf("dial: %w", sinks.ErrUnavailable), "b1": fmt.Errorf("no leader: %w", sinks.ErrTopicUnavailable), "c1": errRefused,
		"d1": fmt.Errorf("too large: %w", sinks.ErrPermanent), "e1": sinks.After(time.Second, sinks.Throttled(fmt.Errorf("429: %w", sinks.ErrUnavailable))),
		"f1": sinks.PutOff(time.Second), "g1": sinks.ErrNotAttempted,
	}
	for name, parkAfter := range map[string]time.Duration{"in place": 0, "parked": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newLaneBench(t, func(_ context.Context, n int, batch []sinks.Message) []error {
					if n == 1 {
						return fail(batch, all)
					}
					return nil
				})
				b.policy, b.delivery.BatchSize, b.delivery.ParkAfter = parkFailed, 20, parkAfter
				b.run()
				b.arrive("a1", "a2", "b1", "c1", "d1", "e1", "f1", "g1", "h1")
				time.Sleep(time.Hour)
				b.stop()
				want := monitoring.Counts{
					Delivered: 8, Failed: 4, Dead: 1, Retried: 4,
					Errors: monitoring.ErrorCounts{
						monitoring.ErrorUnavailable: 1, monitoring.ErrorTopicUnavailable: 1, monitoring.ErrorRefused: 1, monitoring.ErrorPermanent: 1,
						monitoring.ErrorThrottled: 1,
					},
				}
				if parkAfter > 0 {
					want.Parked, want.Unparked = 7, 7 // all but the accepted one and the dead letter
				}
				if got := b.state.status().Counts; got != want {
					t.Errorf("\n got %+v\nwant %+v", got, want)
				}
			})
		})
	}
}

// What a lane parks without asking the sink counts as parked, once.
func TestArrivalsThatAreParkedAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		b.policy, b.delivery.ParkAfter = parkFailed, time.Minute
		b.paused.Store(true)
		b.run()
		b.arrive("a1", "b1", "c1", "d1", "a2")
		time.Sleep(time.Minute)
		if got, want := b.state.status().Counts, (monitoring.Counts{Parked: 5}); got != want {
			t.Errorf("while it is paused: %+v, want %+v", got, want)
		}
		b.paused.Store(false)
		b.ask(askReread)
		time.Sleep(time.Minute)
		b.stop()
		if got, want := b.state.status().Counts, (monitoring.Counts{Delivered: 5, Parked: 5, Unparked: 5}); got != want {
			t.Errorf("afterwards: %+v, want %+v", got, want)
		}
	})
}

// A call that the session has ended is no error of the sink.
func TestEndedCallsAreNoErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(ctx context.Context, _ int, batch []sinks.Message) []error {
			<-ctx.Done()
			return fail(batch, map[string]error{"a1": fmt.Errorf("%w: %w", ctx.Err(), sinks.ErrUnavailable), "b1": errRefused})
		})
		deliver, end := context.WithCancel(b.work)
		b.deliver = deliver
		b.run()
		b.arrive("a1", "b1")
		time.Sleep(time.Second)
		end()
		time.Sleep(time.Second)
		b.stop()
		if got, want := b.state.status().Counts, (monitoring.Counts{Failed: 2, Errors: monitoring.ErrorCounts{monitoring.ErrorRefused: 1}}); got != want {
			t.Errorf("\n got %+v\nwant %+v", got, want)
		}
	})
}
