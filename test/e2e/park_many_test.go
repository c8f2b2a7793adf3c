package e2e

import (
	"fmt"
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
