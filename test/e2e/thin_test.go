package e2e

import (
	"testing"
	"time"
)

// The whole path once: 100 events, kill -9 in the middle, and all arrive.
func TestThin(t *testing.T) {
	t.Parallel()
	for _, sink := range []string{"stdout", "kafka"} {
		t.Run(sink, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{sink}})
			c := w.connector()
			c.start()
			c.ready("leader")
			for range 50 {
				w.insert(1)
			}
			w.deliveredAtLeast(10*time.Second, 1)
			c.kill()
			w.snapshot()
			for range 50 {
				w.insert(1)
			}
			c.start()
			c.ready("leader")
			w.deliveredAtLeast(10*time.Second, 100)
			w.verify(expectation{faults: 1})
			c.term()
		})
	}
}

// Both sinks at once: what one sink got says nothing of the other.
func TestTwoSinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"kafka", "stdout"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 3, aggregates: 10, rate: 200})
	w.deliveredAtLeast(10*time.Second, 200)
	c.kill()
	w.snapshot()
	c.start()
	w.deliveredAtLeast(10*time.Second, 600)
	l.stop()
	w.verify(expectation{faults: 1})
	c.term()
}
