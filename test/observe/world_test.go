//go:build linux

package observe

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// database is the name of the database, of the slot and of the publication.
const database = "observed"

// job is the name under which Prometheus scrapes the instances.
const job = "outbox"

// world is what a connector works with: PostgreSQL, Redis behind a proxy, and receivers of webhooks.
type world struct {
	t         testing.TB
	pg        *servers.Postgres
	redis     *servers.Redis
	proxy     *servers.Proxy // in front of redis
	receivers map[string]*receiver
	config    map[string]any
}

// newWorld makes servers and database. sinks are the names of webhooks; the composite "either" of "first" and "second", and the Redis stream
// "stream", are there always.
func newWorld(t testing.TB, settings map[string]string) *world {
	t.Helper()
	ctx := context.Background()
	w := &world{t: t, receivers: map[string]*receiver{}}
	all := servers.NoSync()
	maps.Copy(all, settings)
	var err error
	if w.pg, err = servers.StartPostgres(ctx, servers.PostgresOptions{Settings: all}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, w.pg.Close) })
	if w.redis, err = servers.StartRedis(ctx, servers.RedisOptions{Settings: map[string]string{"appendfsync": "no"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, w.redis.Close) })
	if w.proxy, err = servers.NewProxy(w.redis.Addr()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, w.proxy.Close) })
	conn, err := process.CreateDatabase(ctx, w.pg, database)
	if err != nil {
		t.Fatal(err)
	}
	closes(t, func() error { return conn.Close(ctx) })

	sinks := []map[string]any{{"name": "stream", "type": "redis_stream", "url": "redis://" + w.proxy.Addr(), "topic": "events"}}
	for _, name := range []string{"orders", "partner", "first", "second"} {
		w.receivers[name] = newReceiver(t)
		sinks = append(sinks, w.receivers[name].sink(name))
	}
	sinks = append(sinks, map[string]any{"name": "either", "type": "composite", "strategy": "any", "members": []string{"first", "second"}})
	w.config = map[string]any{
		"name":   database,
		"source": map[string]any{"dsn": w.pg.DSN(database), "slot": database, "publication": database},
		"sinks":  sinks,
		// An event of another aggregate type goes nowhere.
		"routes":    []map[string]any{{"match": map[string]any{"aggregate_type": []string{"order"}}, "sinks": []string{"stream", "orders", "partner", "either"}}},
		"delivery":  map[string]any{"retry": map[string]any{"initial": "100ms", "max": "1s"}, "max_retries": 1},
		"breaker":   map[string]any{"max_failures": 3, "reset_timeout": "2s"},
		"retention": map[string]any{"outbox": "20s", "ledger": "7d"},
		"sla":       map[string]any{"within": "1s", "objective": 99},
	}
	c := newConnector(t, w.config)
	c.command("init --backlog none")
	return w
}

func closes(t testing.TB, f func() error) {
	t.Helper()
	if err := f(); err != nil {
		t.Error(err)
	}
}

// configure writes the configuration of an instance.
func (c *connector) configure(config map[string]any) {
	c.t.Helper()
	own := maps.Clone(config)
	own["http"] = map[string]any{"listen": c.addr}
	text, err := yaml.Marshal(own)
	if err == nil {
		err = os.WriteFile(c.config, text, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// scraped starts a Prometheus with these rules that scrapes the instances every second.
func scraped(t testing.TB, rules []string, instances ...*connector) *prometheus {
	t.Helper()
	var targets []string
	for _, c := range instances {
		targets = append(targets, c.addr)
	}
	return startPrometheus(t, servers.PrometheusOptions{Targets: map[string][]string{job: targets}, Rules: rules})
}

// connect opens a connection to the database, which is closed when the test ends.
func (w *world) connect() *pgx.Conn {
	w.t.Helper()
	conn, err := pgx.Connect(context.Background(), w.pg.DSN(database))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) }) // the server may have gone
	return conn
}

// exec runs one statement.
func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	conn := w.connect()
	defer conn.Close(context.Background())
	if _, err := conn.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// insert commits n events of aggregates whose ids begin so.
func (w *world) insert(n int, aggregateType, aggregate string) {
	w.t.Helper()
	w.exec(insertEvents, n, aggregateType, aggregate)
}

const insertEvents = `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
	select $2, $3 || i % 100, $2 || '.changed', json_build_object('i', i) from generate_series(1, $1::int) i`

// fileJob files a backlog job that compares all rows of the outbox for a sink. The next session begins it. It compares nothing until the
// function that fileJob returns is called, however long the connection's lock_timeout is, and then finds nothing that is missing.
func (w *world) fileJob(sink string) (release func()) {
	w.t.Helper()
	conn := w.connect()
	if _, err := conn.Exec(w.t.Context(), "select pg_advisory_lock(24)"); err != nil {
		w.t.Fatal(err)
	}
	w.exec(`insert into outbox_backlog (processor_id, mode, reason, base_lsn, base_index, start_lsn, filter, status)
		select p.id, 'missing', 'sink', c.prefix_lsn, c.prefix_index, c.prefix_lsn, '{"where": "set_config(''lock_timeout'', ''0'', true) is not null and pg_advisory_xact_lock_shared(24) is not null"}', 'running'
		from outbox_processors p, outbox_checkpoints c where p.processor_name = $1`, sink)
	return func() { conn.Close(context.Background()) }
}

// load is a service that writes events.
type load struct {
	written atomic.Int64
	cancel  context.CancelFunc
	done    chan error
}

// load writes so many events a second, in twenty transactions, until it is stopped.
func (w *world) load(perSecond int) *load {
	w.t.Helper()
	const transactions = 20
	conn := w.connect()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, done: make(chan error, 1)}
	go func() {
		l.done <- process.Pace(ctx, transactions, 1<<30, func(int) error {
			_, err := conn.Exec(context.Background(), insertEvents, perSecond/transactions, "order", "a-")
			l.written.Add(int64(perSecond / transactions))
			return err
		})
	}()
	w.t.Cleanup(cancel)
	return l
}

// stop ends the load and returns how many events it has committed.
func (l *load) stop(t testing.TB) int64 {
	t.Helper()
	l.cancel()
	if err := <-l.done; err != nil {
		t.Fatal(err)
	}
	return l.written.Load()
}

// hold locks the checkpoints, so that the recorder cannot record anything, until the function that it returns is called.
func (w *world) hold() (release func()) {
	w.t.Helper()
	conn := w.connect()
	if _, err := conn.Exec(w.t.Context(), "begin; lock table outbox_checkpoints in exclusive mode"); err != nil {
		w.t.Fatal(err)
	}
	return func() { conn.Close(context.Background()) }
}

// settled waits until everything that was committed is delivered or dead.
func (w *world) settled(c *connector, patience time.Duration) {
	w.t.Helper()
	eventually(w.t, patience, "everything delivered", func() error {
		values, err := c.scrape()
		if err != nil {
			return err
		}
		for name, value := range values {
			if value > 0 && (strings.HasPrefix(name, prefix+"in_flight") || strings.HasPrefix(name, prefix+"parked_events")) {
				return fmt.Errorf("%s is %v", name, value)
			}
		}
		return nil
	})
}
