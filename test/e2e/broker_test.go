package e2e

import (
	"context"
	"testing"
	"time"
)

// The broker goes away and comes back. Waiting uses up no attempts, the slot waits too, and nothing is repeated that no
// unanswered try explains.
func TestKafkaAway(t *testing.T) {
	t.Parallel()
	k := ownKafka(t)

	t.Run("killed", func(t *testing.T) {
		w := newWorld(t, worldOptions{kafka: k, never: true})
		c := w.connector()
		c.start()
		c.ready("leader")
		l := w.load(load{writers: 3, aggregates: 10, rate: 100})
		w.deliveredAtLeast(20*time.Second, 100)
		if err := k.Kill(); err != nil {
			t.Fatal(err)
		}
		c.degraded("sink:kafka")
		stuck := w.delivered()
		passes(t, 3*time.Second)
		if now := w.delivered(); now != stuck {
			t.Errorf("%d events were delivered to a dead broker", now-stuck)
		}
		w.snapshot()
		if err := k.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.ready("leader")
		w.deliveredAtLeast(30*time.Second, stuck+100)
		l.stop()
		w.verify(expectation{})
		c.term()
	})

	// Longer than the 15 s after which the server drops a reader that it hears nothing of, and with the window full, so
	// that the reader has stopped to read.
	t.Run("stalled", func(t *testing.T) {
		w := newWorld(t, worldOptions{kafka: k, never: true, delivery: map[string]any{"timeout": "4s", "max_in_flight": 100}})
		c := w.connector()
		c.start()
		c.ready("leader")
		l := w.load(load{writers: 3, aggregates: 10, rate: 100})
		w.deliveredAtLeast(20*time.Second, 100)
		if err := k.Pause(); err != nil {
			t.Fatal(err)
		}
		c.degraded("sink:kafka")
		passes(t, 18*time.Second)
		w.snapshot()
		if n := c.metric("events_in_queue", `status="pending"`); n < 80 {
			t.Errorf("%v events in flight: the window was to be full", n)
		}
		if err := k.Resume(); err != nil {
			t.Fatal(err)
		}
		c.ready("leader")
		l.stop()
		w.verify(expectation{})
		if n := c.metric("sessions_total"); n != 1 {
			t.Errorf("%v sessions, want the first to have survived", n)
		}
		c.term()
	})
}
