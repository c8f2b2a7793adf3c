package e2e

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// kill -9 at random moments under load, to each kind of destination beside Kafka, whose own server is killed and started
// again in between.
func TestKillsWithEverySink(t *testing.T) {
	t.Parallel()
	for _, typ := range []string{"redis_stream", "webhook", "event_bus"} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			const kills = 6
			w := newWorld(t, worldOptions{sinks: []string{typ}})
			c := w.connector()
			l := w.load(load{writers: 3, aggregates: 12, rate: 150})
			faults := kills
			random := testrand.New(t)
			for i := range kills {
				c.start()
				w.deliveredAtLeast(20*time.Second, w.delivered()+1)
				passes(t, time.Duration(random.IntN(400))*time.Millisecond)
				if i%4 == 1 {
					w.crashDestination(typ)
					faults++
				}
				c.kill()
				w.snapshot()
			}
			l.stop()
			c.start()
			c.ready("leader")
			w.verify(expectation{faults: faults})
			c.term()
		})
	}
}

// crashDestination kills the server of a type and starts it again. A webhook's receiver answers 503 for a while instead.
func (w *world) crashDestination(typ string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	switch typ {
	case "webhook":
		w.hook.status.Store(http.StatusServiceUnavailable)
		passes(w.t, 100*time.Millisecond)
		w.hook.status.Store(0)
	case "event_bus":
		if err = w.nats.Kill(); err == nil {
			err = w.nats.Start(ctx)
		}
	case "redis_stream":
		if err = w.redis.Kill(); err == nil {
			err = w.redis.Start(ctx)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// Several destinations at once, by routes; what no route wants gets its discarded row.
func TestRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"kafka", "webhook"}})
	w.routes = []map[string]any{
		{"match": map[string]any{"aggregate_type": []string{"invoice"}}, "sinks": []string{"kafka"}},
		{"match": map[string]any{"aggregate_type": "ord*", "event_type": []string{"made"}}, "sinks": []string{"kafka", "webhook"}},
	}
	c := w.connector()
	c.start()
	c.ready("leader")
	for _, row := range [][2]string{{"invoice", "made"}, {"order", "made"}, {"order", "other"}, {"else", "made"}} {
		w.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ($1, 'a', $2, '{}')", row[0], row[1])
	}
	w.allPassed(20 * time.Second)
	if n := len(w.received("kafka")); n != 2 {
		t.Errorf("Kafka got %d events, want 2", n)
	}
	if n := len(w.received("webhook")); n != 1 {
		t.Errorf("the webhook got %d events, want 1", n)
	}
	if n := ask[int](w, "select count(*) from outbox_delivery_log where status = 'discarded' and processor_id = 0"); n != 2 {
		t.Errorf("%d events have a discarded row, want 2", n)
	}
	if n := c.metric("events_processed_total", `sink="none"`, `status="discarded"`); n != 2 {
		t.Errorf("%v events are counted as discarded, want 2", n)
	}
	c.term()
}

// A composite is content with the first member that accepts, and with one that is away nothing is lost and nothing waits.
func TestCompositeAny(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook", "kafka"}})
	w.sinks = append(w.sinks, map[string]any{"name": "either", "type": "composite", "strategy": "any", "members": []string{"webhook", "kafka"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(20)
	w.deliveredAtLeast(20*time.Second, 20)
	if n := len(w.received("webhook")); n != 20 {
		t.Errorf("the first member got %d events, want 20", n)
	}
	w.hook.status.Store(http.StatusServiceUnavailable)
	w.insert(20)
	w.deliveredAtLeast(20*time.Second, 40)
	if hook, kafka := len(w.received("webhook")), len(w.received("kafka")); hook != 20 || kafka != 20 {
		t.Errorf("the members got %d and %d events, want 20 each", hook, kafka)
	}
	for member, away := range map[string]float64{"webhook": 1, "kafka": 0} {
		n := ask[int](w, "select count(distinct event_id) from outbox_delivery_log where status = 'delivered' and member = '"+member+"'")
		counted := c.metric("member_delivered_total", `sink="either"`, `member="`+member+`"`)
		if n != 20 || counted != 20 {
			t.Errorf("%s took %d events by the log and %v by the metric, want 20", member, n, counted)
		}
		if got := c.metric("member_away", `sink="either"`, `member="`+member+`"`); got != away {
			t.Errorf("member_away of %s is %v, want %v", member, got, away)
		}
	}
	c.ready("leader")
	c.term()
}

// The first member of a primary is delivered to as ever, the other gets one try.
func TestCompositePrimary(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"kafka", "webhook"}})
	w.sinks = append(w.sinks, map[string]any{"name": "both", "type": "composite", "strategy": "primary", "members": []string{"kafka", "webhook"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(20)
	w.deliveredAtLeast(20*time.Second, 40)
	w.hook.status.Store(http.StatusServiceUnavailable)
	w.insert(20)
	w.allPassed(20 * time.Second)
	if hook, kafka := len(w.received("webhook")), len(w.received("kafka")); hook != 20 || kafka != 40 {
		t.Errorf("Kafka got %d events and the webhook %d, want 40 and 20", kafka, hook)
	}
	if n := ask[int](w, "select count(*) from outbox_delivery_log where status = 'discarded' and processor_id <> 0"); n != 20 {
		t.Errorf("%d deliveries were discarded, want 20", n)
	}
	c.term()
}
