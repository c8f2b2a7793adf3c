package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// Each sink, PostgreSQL and the ledger are broken and mended under load. All that the connector says of itself is compared with the tables
// every 200 ms, and may never be wrong for more than 3 s after the connector could know.
func TestReachTruth(t *testing.T) {
	t.Parallel()
	pg := ownPostgres(t, nil)
	w := newReachWorld(t, worldOptions{pg: pg, kafka: proxiedKafka(t), sinks: everySink, proxied: true})
	resetTimeout := fullOr(10*time.Second, 2*time.Second)
	// With one failure the breaker opens, so that it is open if and only if the destination is away.
	w.breaker = map[string]any{"max_failures": 1, "reset_timeout": resetTimeout.String()}
	w.exec("create index on outbox_delivery_log (processor_id, status, id)") // for the many questions of this test
	w.hook.meet(func(_, aggregate string) answer {
		if strings.HasPrefix(aggregate, "poisoned") {
			return answer{status: http.StatusBadRequest}
		}
		return answer{}
	})
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 2, aggregates: 20, rate: 20})
	watch := w.watchTruth(c, resetTimeout)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the connector's log:\n%s", tail(c.last().stderr, 40))
		}
	})
	phase := func(name string) {
		t.Logf("%s: %s", time.Since(watch.began).Round(100*time.Millisecond), name)
	}

	person := func(line string) {
		t.Helper()
		if out, code := c.command(nil, append(strings.Fields(line), "--config", c.config)...); code != 0 {
			t.Errorf("%s: exit code %d\n%s", line, code, out)
		}
	}
	phase("three messages die")
	w.insertEach("poisoned", 3)
	passes(t, fullOr(10*time.Second, time.Second))

	for _, sink := range everySink {
		phase(sink + " is away")
		w.proxies[sink].Refuse()
		w.proxies[sink].Cut()
		passes(t, fullOr(10*time.Second, 500*time.Millisecond))
	}
	passes(t, fullOr(20*time.Second, 5*time.Second))
	for _, sink := range everySink {
		phase(sink + " is back")
		w.proxies[sink].Accept()
		passes(t, fullOr(10*time.Second, 500*time.Millisecond))
	}
	w.live(c, time.Minute)
	c.ready("leader")
	if *reach {
		for _, sink := range everySink {
			phase(sink + " hangs")
			w.proxies[sink].Stall()
			passes(t, 50*time.Second) // the first calls take 30 s until they time out
			phase(sink + " answers again")
			w.proxies[sink].Resume()
			w.live(c, 2*time.Minute)
			c.ready("leader")
		}
	}

	phase("the dead letters are discarded")
	person("dlq discard --sink webhook --reason test --yes")
	phase("event_bus is paused")
	person("pause event_bus")
	passes(t, fullOr(20*time.Second, 2*time.Second))
	person("resume event_bus")
	w.live(c, time.Minute)

	phase("PostgreSQL restarts")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w.must(pg.Stop(ctx, servers.Fast))
	passes(t, fullOr(10*time.Second, 0))
	w.must(pg.Start(ctx))
	c.ready("leader")
	passes(t, rightWithin)

	phase("the delivery log is locked")
	watch.lock("outbox_delivery_log", fullOr(20*time.Second, 7*time.Second))
	c.ready("leader")
	if *reach { // outbox_parked is written only while something is away
		w.live(c, time.Minute)
		phase("webhook is away, and outbox_parked is locked")
		w.proxies["webhook"].Refuse()
		w.proxies["webhook"].Cut()
		eventually(t, time.Minute, "an open breaker", func() error {
			if state := c.metric("circuit_breaker_state", `sink="webhook"`); state != 2 {
				return fmt.Errorf("it is %v", state)
			}
			return nil
		})
		w.proxies["webhook"].Cut() // a connection that was just being made when the proxy began to refuse may be left
		watch.lock("outbox_parked", 20*time.Second)
		c.isWithin(10*time.Second, isOK, "recorder")
		phase("webhook is back")
		w.proxies["webhook"].Accept()
		w.live(c, 2*time.Minute)
		c.ready("leader")
	}

	phase("a COMMIT hangs")
	pid := ask[int](w, "select recorder_pid from outbox_checkpoints")
	w.must(servers.Freeze(pid))
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // it may have ended with the test
	watch.note(func() { watch.frozen = time.Now() })
	passes(t, fullOr(30*time.Second, 14*time.Second))
	phase("it goes on")
	watch.note(func() { watch.frozen, watch.wentOn = time.Time{}, true })
	w.must(syscall.Kill(pid, syscall.SIGCONT))
	c.ready("leader")
	passes(t, rightWithin+time.Second)

	phase("the end")
	l.stop()
	passes(t, rightWithin+time.Second) // what is idle is right as well
	watch.verify()
	w.live(c, 30*time.Second)
	w.verify(expectation{faults: 6, status: w.discardedOf("webhook")})
	c.term()
}

// lock locks a table of the ledger for a while, so that nobody can write into it.
func (v *truthWatch) lock(table string, lasts time.Duration) {
	v.w.t.Helper()
	conn := connect(v.w.t, v.w.dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(v.w.t.Context(), "begin; lock table "+table+" in exclusive mode"); err != nil {
		v.w.t.Fatal(err)
	}
	v.note(func() { v.locked = time.Now() })
	passes(v.w.t, lasts)
	logged := ask[int](v.w, "select max(id) from outbox_delivery_log")
	if _, err := conn.Exec(v.w.t.Context(), "rollback"); err != nil {
		v.w.t.Fatal(err)
	}
	v.note(func() { v.logged = logged })
	eventually(v.w.t, 30*time.Second, "a COMMIT after the lock", func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		if !v.locked.IsZero() {
			return fmt.Errorf("there is none behind row %d of the log", logged)
		}
		return nil
	})
}

// discardedOf is an expectation of those events that a person has discarded.
func (w *world) discardedOf(sink string) map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for _, id := range ask[[]string](w, `select coalesce(array_agg(l.event_id::text), '{}') from outbox_delivery_log l
		join outbox_processors p on p.id = l.processor_id where l.status = 'discarded' and p.processor_name = $1`, sink) {
		all[sink+"/"+id] = "discarded"
	}
	return all
}
