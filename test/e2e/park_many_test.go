package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// 20,000 aggregates fail at once, in one lane, which keeps 10,000 of them in memory: all arrive, in order, and others go on.
func TestManyAggregatesFail(t *testing.T) {
	t.Parallel()
	const many = 20_000
	w := newWorld(t, worldOptions{
		sinks: []string{"redis_stream"}, delivery: map[string]any{"batch_size": 500, "lanes": 1, "retry": map[string]any{"initial": "15s", "max": "15s"}},
	})
	w.batchSize, w.lanes = 500, 1
	w.breaker["enabled"] = false // or most were left alone
	c := w.connector()
	c.start()
	c.ready("leader")
	w.redisDo("CONFIG SET maxmemory 1")
	w.insertEach("m", many)
	eventually(t, 40*time.Second, "all tried", func() error {
		if n := w.ofSink("redis_stream", "k.tries > 0"); n < many {
			return fmt.Errorf("%d were", n)
		}
		return nil
	})
	w.goesOn(20 * time.Second)
	w.snapshot()
	w.redisDo("CONFIG SET maxmemory 0")
	w.insertEach("m", 500) // behind those that wait
	w.insertEach("other", 500)
	w.live(c, 90*time.Second)
	w.verify(expectation{})
	c.ready("leader")
	c.term()
}

// 2,000 aggregates whose messages are never answered, beside healthy ones: these go on at half their rate at least.
func TestManyMessagesAreNeverAnswered(t *testing.T) {
	t.Parallel()
	for _, breaker := range []bool{true, false} {
		t.Run(fmt.Sprintf("breaker %t", breaker), func(t *testing.T) {
			t.Parallel()
			const stuck, rounds, healthy = 2000, 100, 10 // healthy ones a round of 100 ms
			w := newWorld(t, worldOptions{
				sinks: []string{"webhook"},
				// The proportions of the defaults.
				delivery: map[string]any{"batch_size": 500, "timeout": "500ms", "retry": map[string]any{"initial": "100ms", "max": "10s"}},
			})
			w.batchSize = 500
			w.breaker["enabled"] = breaker
			w.hook.meet(func(_, aggregate string) answer { return answer{hang: strings.HasPrefix(aggregate, "stuck")} })
			c := w.connector()
			c.start()
			c.ready("leader")
			w.insertEach("healthy", healthy)
			w.deliveredAtLeast(10*time.Second, healthy)
			w.insertEach("stuck", stuck)
			w.parksAtLeast(20*time.Second, "webhook", stuck)
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			began := time.Now()
			for range rounds {
				w.insertEach("healthy", healthy)
				<-tick.C
			}
			arrived := len(w.hook.received()) - healthy
			t.Logf("%d of %d healthy ones arrived within %.1f s; of the others %d were tried", arrived, rounds*healthy,
				time.Since(began).Seconds(), w.ofSink("webhook", "k.tries > 0"))
			if arrived < rounds*healthy/2 {
				t.Errorf("%d of %d healthy ones arrived, want half at least", arrived, rounds*healthy)
			}
			eventually(t, 30*time.Second, "all healthy ones", func() error {
				if n := w.ofSink("webhook", "k.event ->> 'aggregate_id' like 'healthy%'"); n > 0 {
					return fmt.Errorf("%d are parked", n)
				}
				if n := w.delivered(); n < (rounds+1)*healthy {
					return errors.New("they are not there yet")
				}
				return nil
			})
			if n := w.ofSink("webhook", "k.attempts > 0 or k.status = 'dead'"); n > 0 {
				t.Errorf("%d of those without an answer have used attempts", n)
			}
			w.hook.meet(nil)
			w.snapshot()
			w.verify(expectation{})
			c.ready("leader")
			c.term()
		})
	}
}
