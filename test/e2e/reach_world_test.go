package e2e

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

var reach = flag.Bool("reach", false, "the tests of failure rules and of retention at their full length, an hour in all")

// fullOr returns the first duration for the full length, and the second otherwise.
func fullOr(full, short time.Duration) time.Duration {
	if *reach {
		return full
	}
	return short
}

// inTime is how long after its commit an event may arrive that nothing is wrong with.
const inTime = 3 * time.Second

// newReachWorld makes a world with what the configuration is by default.
func newReachWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	w := newWorld(t, o)
	w.delivery, w.breaker, w.batchSize = map[string]any{}, map[string]any{}, 500
	return w
}

// written is an event that steady has written.
type written struct {
	id, typ, aggregate string
	committed          time.Time // when COMMIT was answered
}

// steady commits one event after the other for a while, at an even rate, and returns them.
func (w *world) steady(d time.Duration, perSecond int, next func(i int) (typ, aggregate string)) []written {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), d+time.Minute)
	defer cancel()
	conn := connect(w.t, w.dsn)
	defer conn.Close(context.Background())
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	var all []written
	for end := time.Now().Add(d); time.Now().Before(end); {
		var e written
		e.typ, e.aggregate = next(len(all))
		err := conn.QueryRow(ctx, `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ($1, $2, 'made', $3) returning id::text`,
			e.typ, e.aggregate, fmt.Sprintf(`{"i": %d}`, len(all))).Scan(&e.id)
		if err != nil {
			w.t.Fatal(err)
		}
		e.committed = time.Now()
		all = append(all, e)
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatal(context.Cause(ctx))
		}
	}
	return all
}

// which returns those events for which good returns true.
func which(all []written, good func(written) bool) []written {
	return slices.DeleteFunc(slices.Clone(all), func(e written) bool { return !good(e) })
}

// arrivals returns how long after its commit each of these events arrived at a destination, sorted. What has not arrived is missing,
// and fails the test.
func (w *world) arrivals(typ string, events []written) (took []time.Duration) {
	w.t.Helper()
	first := map[string]time.Time{}
	for _, d := range w.received(typ) {
		if at, seen := first[d.id]; !seen || d.at.Before(at) {
			first[d.id] = d.at
		}
	}
	lost, late := 0, ""
	for _, e := range events {
		at, ok := first[e.id]
		if !ok {
			lost++
			continue
		}
		wait := at.Sub(e.committed)
		took = append(took, wait)
		if wait > inTime && len(late) < 1000 {
			late += fmt.Sprintf(" %s at %s", wait.Round(time.Millisecond), e.committed.Sub(events[0].committed).Round(time.Second))
		}
	}
	slices.Sort(took)
	if lost > 0 || len(took) == 0 {
		w.t.Errorf("%s: %d of %d events never arrived", typ, lost, len(events))
		return took
	}
	w.t.Logf("%s: %d events arrived after %s at p50, %s at p99, %s at most; too late:%s", typ, len(took), percentile(took, 50), percentile(took, 99),
		percentile(took, 100), cmp.Or(late, " none"))
	return took
}

// percentile returns 0 if there is none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, (len(sorted)*p+99)/100-1)].Round(time.Millisecond)
}

// allInTime wants each of these events to have arrived inTime at a destination.
func (w *world) allInTime(typ string, events []written) {
	w.t.Helper()
	took := w.arrivals(typ, events)
	late := slices.IndexFunc(took, func(d time.Duration) bool { return d > inTime })
	if late >= 0 {
		w.t.Errorf("%s: %d of %d events arrived more than %s after their commit, the last one after %s", typ, len(took)-late, len(took), inTime,
			percentile(took, 100))
	}
}

// bringBack makes the missing topic of each destination, and has the connector try again now.
func (w *world) bringBack(c *connector) {
	w.t.Helper()
	topic := w.topics.of(w.missing)
	w.missing = ""
	if w.log != nil {
		w.must(w.kafka.CreateTopic(w.t.Context(), topic, partitions, nil))
		w.log = newKafkaLog(w.t, w.kafka.Brokers(), w.topics.names())
	}
	if w.nats != nil {
		w.createStream()
	}
	if w.redis != nil {
		w.redisDo("DEL " + topic)
	}
	if w.hook != nil {
		w.hook.meet(nil)
	}
	if out, code := c.command(nil, "retry", "--all", "--config", c.config); code != 0 {
		w.t.Errorf("retry --all: exit code %d\n%s", code, out)
	}
}

// repetitions counts the requests for messages that a receiver was asked about before.
type repetitions struct {
	mu    sync.Mutex
	known map[string]bool
	at    []time.Time // of each such request
}

func (r *repetitions) note(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[id] {
		r.at = append(r.at, time.Now())
	}
	r.known[id] = true
}

// most returns the largest number of them within a time of this length.
func (r *repetitions) most(within time.Duration) (most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := 0
	for i := range r.at {
		for r.at[i].Sub(r.at[from]) >= within {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}
