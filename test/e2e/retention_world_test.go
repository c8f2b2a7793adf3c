package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
)

// retentionWorld is a world whose rows are deleted after seconds, beside everything that goes wrong. The connector's login owns nothing.
type retentionWorld struct {
	*world
	c, other *connector // other streams from a slot of its own, with the same ledger
	random   *rand.Rand
	began    time.Time
	faults   int
	poisoned int
	least    struct{ outbox, ledger time.Duration } // the shortest that were ever in force

	mu      sync.Mutex
	healed  map[string]bool // events that the receiver does accept, though their aggregate is poisoned
	retried map[string]int

	background sync.WaitGroup // transactions of others
	inserts    []time.Duration
}

const logSlice = 2 * time.Second

func newRetentionWorld(t testing.TB, pg *servers.Postgres, initFlags ...string) *retentionWorld {
	t.Helper()
	w := &retentionWorld{
		world:  newWorld(t, worldOptions{pg: pg, sinks: []string{"webhook", "redis_stream"}, proxied: true, bare: true}),
		random: testrand.New(t), began: time.Now(), healed: map[string]bool{}, retried: map[string]int{},
	}
	role := w.role()
	w.exec("alter role " + role + " replication")
	w.source["dsn"] = asRole(t, w.dsn, role, "secret")
	w.keep(2*time.Second, 4*time.Second)
	w.least.outbox, w.least.ledger = 2*time.Second, 4*time.Second
	w.c = w.connector()
	args := append([]string{"init", "--config", w.c.config, "--backlog", "none", "--dsn", w.dsn}, initFlags...)
	if out, code := w.c.command(nil, args...); code != 0 {
		t.Fatalf("init: exit code %d\n%s", code, out)
	}
	w.sliceLog(logSlice)
	w.notesDrops()
	if len(initFlags) > 0 {
		w.exec("select outbox_make_event_partitions(now() - interval '2 days', 0)")
	}
	w.exec("select pg_create_logical_replication_slot($1, 'test_decoding')", w.oracle)
	w.sampler = startSampler(t, w.dsn, w.slot)
	w.hook.meet(func(id, aggregate string) answer {
		if status := w.hook.status.Load(); status != 0 {
			return answer{status: int(status)}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if strings.HasPrefix(aggregate, "poisoned") && !w.healed[id] {
			return answer{status: http.StatusBadRequest}
		}
		return answer{}
	})
	t.Cleanup(w.background.Wait)
	return w
}

// keep sets the retention of the configuration.
func (w *retentionWorld) keep(outbox, ledger time.Duration) {
	w.retention = map[string]any{"outbox": outbox.String(), "ledger": ledger.String()}
	w.least.outbox, w.least.ledger = min(w.least.outbox, outbox), min(w.least.ledger, ledger)
}

// says what happens, for who reads the log of a failed test.
func (w *retentionWorld) phase(format string, args ...any) {
	w.t.Logf("%5.1f s: "+format, append([]any{time.Since(w.began).Seconds()}, args...)...)
}

// beside runs a transaction of somebody else for a while. It ends early when the server crashes.
func (w *retentionWorld) beside(lasts time.Duration, begin string, statements ...string) {
	w.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), lasts+time.Minute)
		defer cancel()
		conn, err := pgx.Connect(ctx, w.dsn)
		if err != nil {
			return // the server is away
		}
		defer conn.Close(context.Background())
		for _, sql := range append([]string{begin}, statements...) {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return
			}
		}
		passes(w.t, lasts)
		_, _ = conn.Exec(ctx, "commit")
	})
}

// insertsAlone writes one event after the other, each in a transaction of its own, and notes how long each took.
func (w *retentionWorld) insertsAlone() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			conn, err := pgx.Connect(ctx, w.dsn)
			for err == nil && ctx.Err() == nil {
				began := time.Now()
				_, err = conn.Exec(context.Background(), `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', 'alone', 'made', '{}')`)
				if err == nil {
					w.inserts = append(w.inserts, time.Since(began))
				}
				<-tick.C
			}
			if conn != nil {
				conn.Close(context.Background())
			}
			<-tick.C
		}
	}()
	return sync.OnceFunc(func() { cancel(); <-done })
}

// longestInsert fails the test if an insert of a service has waited for more than most.
func (w *retentionWorld) longestInsert(most time.Duration) {
	w.t.Helper()
	slices.Sort(w.inserts)
	w.t.Logf("%d inserts: %s at p50, %s at p99, %s at most", len(w.inserts), percentile(w.inserts, 50), percentile(w.inserts, 99), percentile(w.inserts, 100))
	if longest := percentile(w.inserts, 100); longest > most || longest == 0 {
		w.t.Errorf("an insert took %s, want %s at most", longest, most)
	}
}

// addOther makes a second connector with a slot and a sink of its own, on the same ledger.
func (w *retentionWorld) addOther() {
	w.t.Helper()
	slot, sinks, source := w.slot, w.sinks, w.source
	defer func() { w.slot, w.sinks, w.source = slot, sinks, source }()
	w.slot += "_other"
	w.source = map[string]any{"dsn": source["dsn"], "slot": w.slot, "publication": w.publication}
	w.sinks = []map[string]any{{"name": "other", "type": "stdout"}}
	w.other = w.connector()
	if out, code := w.other.command(nil, "init", "--config", w.other.config, "--backlog", "none", "--dsn", w.dsn); code != 0 {
		w.t.Fatalf("init: exit code %d\n%s", code, out)
	}
}

// act does one thing at random, and returns when it is over.
func (w *retentionWorld) act() {
	w.t.Helper()
	acts := []func(){
		w.kill, w.kill, w.crash, w.awayHook, w.awayRedis, w.poison, w.poison, w.retryDead, w.pause, w.transactions, w.transactions, w.change, w.clocks, w.byHand, w.stopOther,
	}
	acts[w.random.IntN(len(acts))]()
}

func (w *retentionWorld) kill() {
	w.phase("the connector is killed")
	w.c.kill()
	w.faults++
	passes(w.t, time.Duration(w.random.IntN(500))*time.Millisecond)
	w.c.start()
	passes(w.t, 3*time.Second) // its first Deliver waits for 2 s
}

func (w *retentionWorld) crash() {
	both := w.random.IntN(2) == 0
	w.phase("PostgreSQL crashes, and the connector is killed: %t", both)
	w.must(w.pg.Stop(context.Background(), servers.Immediate))
	if both {
		w.c.kill()
		w.faults++
	}
	w.faults++
	w.must(w.pg.Start(context.Background()))
	if both {
		w.c.start()
	}
	w.c.ready("leader")
}

func (w *retentionWorld) awayHook() {
	w.phase("webhook is away for longer than anything is kept")
	w.hook.status.Store(http.StatusServiceUnavailable)
	passes(w.t, 6*time.Second)
	w.hook.status.Store(0)
	w.phase("webhook is back")
}

func (w *retentionWorld) awayRedis() {
	w.phase("redis_stream is away for longer than anything is kept")
	w.proxies["redis_stream"].Refuse()
	w.proxies["redis_stream"].Cut()
	passes(w.t, 6*time.Second)
	w.proxies["redis_stream"].Accept()
	w.phase("redis_stream is back")
}

// poison writes an event that the receiver refuses.
func (w *retentionWorld) poison() {
	w.poisoned++
	w.phase("an event is poisoned")
	w.insertInto(fmt.Sprintf("poisoned-%d", w.poisoned), 1)
}

// retryDead retries a dead letter whose row of the outbox and whose rows of the log are gone.
func (w *retentionWorld) retryDead() {
	w.t.Helper()
	id := w.deadAlone()
	if id == "" {
		w.phase("there is no dead letter to retry")
		return
	}
	w.phase("a dead letter is retried")
	w.mu.Lock()
	w.healed[id] = true
	w.mu.Unlock()
	w.retried["webhook/"+id]++
	w.c.does("dlq", "retry", "--id", id)
}

// deadAlone is the id of a dead letter of which nothing else is left, "" if there is none.
func (w *retentionWorld) deadAlone() string {
	w.t.Helper()
	return ask[string](w.world, `select coalesce(min(event_id::text), '') from outbox_parked k where status = 'dead'
		and not exists (select from event_outbox o where o.id = k.event_id) and not exists (select from outbox_delivery_log l where l.event_id = k.event_id)`)
}

func (w *retentionWorld) pause() {
	w.phase("redis_stream is paused for longer than anything is kept")
	w.c.does("pause", "redis_stream")
	passes(w.t, 6*time.Second)
	w.c.does("resume", "redis_stream")
	w.phase("redis_stream goes on")
}

// transactions are those of others that stay open for a while, beside what happens next.
func (w *retentionWorld) transactions() {
	lasts := time.Duration(2+w.random.IntN(6)) * time.Second
	switch w.random.IntN(4) {
	case 0:
		w.phase("somebody reads the outbox and the log for %s", lasts)
		w.beside(lasts, "begin isolation level repeatable read", "select count(*) from event_outbox", "select count(*) from outbox_delivery_log")
	case 1:
		w.phase("somebody holds rows of the outbox for %s", lasts)
		w.beside(lasts, "begin", "select id from event_outbox order by created_at limit 20 for update")
	case 2:
		w.phase("a transaction with old events commits after %s", lasts)
		w.beside(lasts, "begin", `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'order', 'late-' || i, 'made', '{}', now() - interval '1 hour' from generate_series(1, 5) i`)
	default:
		w.phase("somebody has a snapshot for %s", lasts)
		w.beside(lasts, "begin isolation level repeatable read", "select 1")
	}
}

// change sets another retention while the connector runs.
func (w *retentionWorld) change() {
	w.t.Helper()
	outbox := time.Duration(w.random.IntN(4)) * time.Second
	w.phase("the outbox is kept for %s", outbox)
	w.keep(outbox, outbox+2*time.Second)
	w.writeConfig(w.c)
	w.c.hup()
	passes(w.t, time.Second)
}

// clocks writes events of services whose clocks are wrong.
func (w *retentionWorld) clocks() {
	w.phase("clocks are an hour and days off")
	for _, off := range []string{"1 hour", "-1 hour", "-2 days", "-9 days"} {
		w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'invoice', 'clock-' || i, 'made', '{}', now() + $1::interval from generate_series(1, 3) i`, off)
	}
}

// byHand cleans up by the command, beside the connector.
func (w *retentionWorld) byHand() {
	w.t.Helper()
	w.phase("cleanup by hand")
	for _, how := range []string{"--dry-run", "--once"} {
		began := time.Now()
		if out, code := w.c.command(nil, "cleanup", how, "--config", w.c.config); code != 0 {
			w.t.Errorf("cleanup %s: exit code %d\n%s", how, code, out)
		}
		if took := time.Since(began); took > 10*time.Second {
			w.t.Errorf("cleanup %s took %s", how, took)
		}
	}
}

// stopOther stops the other slot's connector for longer than anything is kept.
func (w *retentionWorld) stopOther() {
	w.phase("the other connector is stopped")
	w.other.kill()
	passes(w.t, 5*time.Second)
	w.other.start()
	w.phase("the other connector runs")
}

// ends waits until all that may go is gone, and checks everything.
func (w *retentionWorld) ends() {
	w.t.Helper()
	w.background.Wait()
	w.keep(2*time.Second, 4*time.Second)
	w.writeConfig(w.c)
	w.c.hup()
	w.c.ready("leader")
	w.other.ready("leader")
	w.settled(committed(w.history("event_outbox")))
	w.otherGotAll(committed(w.history("event_outbox")))
	w.phase("everything is settled")
	passes(w.t, 2*logSlice+4*time.Second)
	w.byHand() // looks at all rows, and the connector does so once a minute only
	eventually(w.t, time.Minute, "an empty outbox", func() error {
		if n := ask[int](w.world, "select count(*) from event_outbox where created_at < now() - interval '2 s'"); n > 0 {
			return fmt.Errorf("%d rows are left: %s", n, w.lastReport())
		}
		return nil
	})
	w.phase("the outbox is empty")
	eventually(w.t, time.Minute, "old partitions of the log dropped", func() error {
		if names := w.oldLog(4*time.Second + logSlice); len(names) > 0 {
			return fmt.Errorf("%d are left, %s first: %s", len(names), names[0], w.lastReport())
		}
		return nil
	})
	w.phase("the log is empty")
	for id := w.deadAlone(); id != ""; id = w.deadAlone() {
		w.retryDead()
	}
	if n := ask[int](w.world, "select count(*) from outbox_parked where status = 'dead'"); n > 0 {
		w.t.Errorf("%d dead letters cannot be retried yet", n)
	}
	w.settled(committed(w.history("event_outbox")))
	all := w.history("event_outbox", "outbox_delivery_log", "outbox_parked", "outbox_checkpoints", "dropped")
	logged := slices.DeleteFunc(w.logged(all), func(o outcome) bool { return o.sink == "other" })
	w.judge(committed(all), logged, expectation{faults: w.faults, retried: w.retried})
	d := checkDeletions(all, deletionRules{
		sinks: []string{"webhook", "redis_stream", "other"}, processors: w.processors(), outbox: w.least.outbox, ledger: w.least.ledger, slack: 10 * time.Millisecond,
	})
	w.t.Logf("of %d events %d rows were deleted, and %d partitions of the log, %d of the outbox; %d dead letters were retried",
		len(committed(all)), d.rows, d.days, d.outboxDays, len(w.retried))
	for i, p := range d.problems {
		if i == 20 {
			w.t.Errorf("and %d more", len(d.problems)-i)
			break
		}
		w.t.Error(p)
	}
	if d.rows+d.outboxDays == 0 || d.days == 0 {
		w.t.Error("nothing was deleted, so nothing was tested")
	}
	w.c.term()
	w.other.term()
}

// otherGotAll waits until the other connector's sink has every event.
func (w *retentionWorld) otherGotAll(truth []event) {
	w.t.Helper()
	eventually(w.t, time.Minute, "all events at other", func() error {
		got := map[string]bool{}
		for _, d := range w.printed() {
			got[d.id] = true
		}
		for _, ev := range truth {
			if !got[ev.id] {
				return fmt.Errorf("it never got event %s", ev.id)
			}
		}
		return nil
	})
}

// oldLog are the partitions of the log that ended so long ago.
func (w *world) oldLog(age time.Duration) (names []string) {
	w.t.Helper()
	now := ask[time.Time](w, "select now()")
	for _, name := range ask[[]string](w, "select array_agg(inhrelid::regclass::text order by 1) from pg_inherits where inhparent = 'outbox_delivery_log'::regclass") {
		if now.Sub(logPartitionEnd(name)) > age {
			names = append(names, name)
		}
	}
	return names
}

// lastReport is what the last pass has written about itself.
func (w *world) lastReport() string {
	w.t.Helper()
	return ask[string](w, "select coalesce(max(report::text), 'no report') from outbox_retention")
}
