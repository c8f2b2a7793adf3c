package connector

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// A lane keeps no settled event in memory, whether it was delivered or parked.
func TestLaneKeepsNothing(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]error{"delivered": nil, "parked": sinks.ErrUnavailable} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
					errs := make([]error, len(batch))
					for i := range errs {
						errs[i] = answer
					}
					return errs
				})
				b.delivery.ParkAfter = 10 * time.Second
				b.run()
				time.Sleep(time.Second)
				var events []weak.Pointer[outbox.Event]
				for i := range 4 {
					events = append(events, b.arriveOne(i))
					time.Sleep(10 * time.Millisecond)
				}
				synctest.Wait()
				b.mu.Lock()
				clear(b.rows)
				b.mu.Unlock()
				runtime.GC()
				for i, e := range events {
					if e.Value() != nil {
						t.Errorf("event %d is kept", i)
					}
				}
				b.stop()
			})
		})
	}
}

func (b *laneBench) arriveOne(i int) weak.Pointer[outbox.Event] {
	e := &outbox.Event{ID: "e", AggregateType: "t", AggregateID: string(rune('a' + i)), Payload: make([]byte, 1000)}
	d := &delivery{hash: int64(i + 100), entry: uint64(i), Message: sinks.Message{Event: e, LSN: 1, Index: int64(i)}}
	b.in <- handed{[]*delivery{d}, time.Now()}
	return weak.Make(e)
}
