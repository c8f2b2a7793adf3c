package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

var everySink = []string{"kafka", "event_bus", "webhook", "redis_stream"}

// missingTopic makes a world with a sink of every type, in which the topic of invoices is missing: a Kafka topic and a NATS subject that
// nobody has made, a Redis stream whose name another key has, and a path of a webhook that is not found.
func missingTopic(t *testing.T) (*world, *connector) {
	t.Helper()
	w := newReachWorld(t, worldOptions{sinks: everySink, missing: "invoice"})
	for _, sink := range w.sinks {
		if sink["type"] == "webhook" {
			sink["topic"] = w.hook.server.URL + "/{aggregate_type}"
			w.hook.meet(func(_, aggregate string) answer {
				if strings.HasPrefix(aggregate, "lost") {
					return answer{status: http.StatusNotFound}
				}
				return answer{}
			})
		}
	}
	c := w.connector()
	c.start()
	c.ready("leader")
	return w, c
}

func isOrder(e written) bool { return e.typ == "order" }

// endOfMissingTopic wants that invoices wait and orders have arrived in time. Then it makes the topic, and wants that all arrives.
func (w *world) endOfMissingTopic(c *connector, orders []written, invoices int) {
	w.t.Helper()
	passes(w.t, inTime)
	for _, typ := range everySink {
		waiting, used := w.ofSink(typ, "k.status = 'parked' and k.event ->> 'aggregate_type' = 'invoice'"), w.ofSink(typ, "k.attempts > 0 or k.status = 'dead'")
		if waiting != invoices || used > 0 {
			w.t.Errorf("%s: %d of %d events of the missing topic wait, and %d have used attempts", typ, waiting, invoices, used)
		}
	}
	if strings.Contains(tail(c.last().stderr, 100_000), "breaker open") {
		w.t.Error("a missing topic has opened a breaker")
	}
	w.bringBack(c)
	w.live(c, 2*time.Minute)
	for _, typ := range everySink {
		w.allInTime(typ, orders)
	}
	w.verify(expectation{})
	c.term()
}

// 40 aggregates have an event a second each. The topic of one of them is missing, and those of the others do not wait for it.
func TestReachOneTopicIsMissing(t *testing.T) {
	t.Parallel()
	w, c := missingTopic(t)
	const aggregates = 40
	all := w.steady(fullOr(5*time.Minute, 8*time.Second), aggregates, func(i int) (typ, aggregate string) {
		if i%aggregates == 0 {
			return "invoice", "lost"
		}
		return "order", fmt.Sprintf("a-%d", i%aggregates)
	})
	orders := which(all, isOrder)
	w.endOfMissingTopic(c, orders, len(all)-len(orders))
}

// 5,000 aggregates of a missing topic wait already when good events begin to come.
func TestReachManyOfAMissingTopic(t *testing.T) {
	t.Parallel()
	w, c := missingTopic(t)
	lost := 1000
	if *reach {
		lost = 5000
	}
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
		select 'invoice', 'lost-' || i, 'made', json_build_object('i', i) from generate_series(1, $1::int) i`, lost)
	orders := w.steady(fullOr(time.Minute, 8*time.Second), 1, func(i int) (typ, aggregate string) { return "order", fmt.Sprintf("a-%d", i%20) })
	w.endOfMissingTopic(c, orders, lost)
}
