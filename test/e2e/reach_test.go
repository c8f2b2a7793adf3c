package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// What the failure rules have to reach, with the default configuration. "make reach" runs each test at its full length. "make test" runs
// them with less time and fewer events.

// 500 aggregates are refused whenever they are tried, beside 20 healthy ones: these do not wait, and none of their events dies. In one
// world a refused event has attempts left, in the other it dies at once, unless the death budget is used up.
func TestReachPoisonedBesideHealthy(t *testing.T) {
	t.Parallel()
	for name, delivery := range map[string]map[string]any{"retried": {}, "dying": {"max_retries": 0}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newReachWorld(t, worldOptions{sinks: []string{"webhook"}})
			w.delivery = delivery
			w.hook.meet(func(_, aggregate string) answer {
				if strings.HasPrefix(aggregate, "poisoned") {
					return answer{status: http.StatusInternalServerError}
				}
				return answer{}
			})
			c := w.connector()
			c.start()
			c.ready("leader")
			w.insertEach("poisoned", 500)
			random := testrand.New(t)
			all := w.steady(fullOr(10*time.Minute, 10*time.Second), 10, func(i int) (typ, aggregate string) {
				if i%2 == 0 {
					return "order", fmt.Sprintf("poisoned-%d", 1+random.IntN(500))
				}
				return "order", fmt.Sprintf("healthy-%d", i/2%20)
			})
			passes(t, inTime)
			if n := w.ofSink("webhook", "k.status = 'dead' and k.event ->> 'aggregate_id' like 'healthy%'"); n > 0 {
				t.Errorf("%d healthy events are dead", n)
			}
			t.Logf("%d poisoned events wait, %d are dead", w.ofSink("webhook", "k.status = 'parked'"), w.ofSink("webhook", "k.status = 'dead'"))
			took := w.arrivals("webhook", which(all, func(e written) bool { return strings.HasPrefix(e.aggregate, "healthy") }))
			if p99 := percentile(took, 99); p99 > inTime {
				t.Errorf("p99 of the healthy events is %s, want %s at most", p99, inTime)
			}
			w.mended(c, time.Minute)
			w.verify(expectation{status: w.deadOf("webhook")})
			c.term()
		})
	}
}

// mended makes the receiver accept everything, has the connector try again now, and waits until nothing is parked.
func (w *world) mended(c *connector, patience time.Duration) {
	w.t.Helper()
	w.hook.status.Store(0)
	w.hook.meet(nil)
	if out, code := c.command(nil, "retry", "webhook", "--config", c.config); code != 0 {
		w.t.Errorf("retry webhook: exit code %d\n%s", code, out)
	}
	w.live(c, patience)
}

// A receiver answers 400 to everything for a minute, while events keep coming. Five of them die, and the others arrive when it is well
// again. Of those that it has refused before it is asked about 50 a second at most.
func TestReachReceiverRefusesEverything(t *testing.T) {
	t.Parallel()
	const dead, pace = 5, 50
	w := newReachWorld(t, worldOptions{sinks: []string{"webhook"}})
	again := &repetitions{known: map[string]bool{}}
	w.hook.meet(func(id, _ string) answer {
		again.note(id)
		return answer{status: http.StatusBadRequest}
	})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.steady(fullOr(time.Minute, 15*time.Second), 20, func(i int) (typ, aggregate string) { return "order", fmt.Sprintf("a-%d", i) })
	if n := w.ofSink("webhook", "k.status = 'dead'"); n != dead {
		t.Errorf("%d events are dead, want %d", n, dead)
	}
	// A call of ten that a busy machine has held up may fall together with the next one.
	for _, d := range []time.Duration{time.Second, 10 * time.Second} {
		got, limit := again.most(d), pace*int(d/time.Second)+10
		t.Logf("at most %d requests for events refused before in %s", got, d)
		if got > limit {
			t.Errorf("%d requests within %s were for events that had been refused before, want %d at most", got, d, limit)
		}
	}
	if again.most(time.Hour) == 0 {
		t.Error("no event was tried again")
	}
	w.mended(c, 2*time.Minute)
	if n := w.ofSink("webhook", "k.status = 'dead'"); n != dead {
		t.Errorf("%d events are dead in the end, want %d", n, dead)
	}
	w.verify(expectation{status: w.deadOf("webhook")})
	c.term()
}

// A receiver answers 500 to everything for half a minute, then it is well: nothing has died, and all arrives without a person.
func TestReachReceiverIsIll(t *testing.T) {
	t.Parallel()
	w := newReachWorld(t, worldOptions{sinks: []string{"webhook"}})
	w.hook.status.Store(http.StatusInternalServerError)
	c := w.connector()
	c.start()
	c.ready("leader")
	w.steady(fullOr(30*time.Second, 10*time.Second), 20, func(i int) (typ, aggregate string) { return "order", fmt.Sprintf("a-%d", i%100) })
	if n := w.ofSink("webhook", "k.status = 'dead'"); n > 0 {
		t.Errorf("%d events are dead", n)
	}
	w.hook.status.Store(0)
	w.live(c, 2*time.Minute)
	w.verify(expectation{})
	c.term()
}
