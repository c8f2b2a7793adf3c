package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// world is what a test has for itself.
type world struct {
	t           testing.TB
	pg          *servers.Postgres
	kafka       *servers.Kafka
	database    string
	dsn         string // of the superuser, past any proxy
	slot        string
	oracle      string // the slot of the truth
	publication string
	topics      topics
	missing     string // see worldOptions
	// What the configuration says. A test changes them before it makes a connector.
	source, delivery, breaker map[string]any
	retention                 map[string]any // nil: the default
	sinks                     []map[string]any
	routes                    []map[string]any
	batchSize, lanes          int

	connectors []*connector
	log        *kafkaLog
	hook       *hook
	nats       *servers.NATS
	redis      *servers.Redis
	proxied    bool
	proxies    map[string]*servers.Proxy // by type of sink
	sampler    *sampler
	initFlags  []string
	snapshots  []snapshot
}

// worldOptions say what differs from a world with the shared servers, a sink to Kafka, and small batches: with those a
// fault can repeat little, and a repetition without a fault shows.
type worldOptions struct {
	pg       *servers.Postgres
	kafka    *servers.Kafka
	sinks    []string // types, kafka by default; a sink is named after its type
	delivery map[string]any
	never    bool   // park_after: the slot waits for the sinks
	proxied  bool   // destinations are reached through proxies, Kafka where its server has one
	encoding string // of the database; "" is the server's
	// missing is an aggregate type whose topic no destination has: there is none, or something else has its name. A webhook's
	// receiver has all paths. bringBack makes the topic.
	missing string
	// partitioned makes the outbox partitioned by day.
	partitioned bool
	// bare leaves out init and the oracle: the test wants to see something fail.
	bare bool
}

var aggregateTypes = []string{"order", "invoice"}

func newWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	s := shared.open(t)
	name := "e2e_" + strings.ToLower(rand.Text()[:12])
	w := &world{
		t: t, pg: o.pg, kafka: o.kafka, database: name, slot: name, oracle: name + "_oracle", publication: name,
		topics: topics{prefix: name}, missing: o.missing, batchSize: 20, lanes: 4,
		proxied: o.proxied, proxies: map[string]*servers.Proxy{},
	}
	if w.pg == nil {
		w.pg = s.pg
	}
	if w.kafka == nil {
		w.kafka = s.kafka
	}
	w.dsn = w.pg.DSN(name)
	w.createDatabase(o.encoding)
	w.source = map[string]any{"dsn": w.dsn, "slot": w.slot, "publication": w.publication}
	w.delivery = map[string]any{"batch_size": w.batchSize, "lanes": w.lanes, "retry": map[string]any{"initial": "100ms", "max": "500ms"}}
	w.breaker = map[string]any{"reset_timeout": "1s"} // of a minute nobody waits for the end
	if o.never {
		w.delivery["park_after"] = "never"
	}
	maps.Copy(w.delivery, o.delivery)
	if o.sinks == nil {
		o.sinks = []string{"kafka"}
	}
	for _, typ := range o.sinks {
		sink := map[string]any{"name": typ, "type": typ, "topic": w.topics.prefix + ".{aggregate_type}"}
		w.destination(typ, sink)
		w.sinks = append(w.sinks, sink)
	}
	if o.partitioned {
		w.initFlags = []string{"--partitioned"}
	}
	if !o.bare {
		w.init()
	}
	return w
}

// init makes tables, publication and slot as a person would, and then the oracle, before anything is written.
func (w *world) init() {
	w.t.Helper()
	c := w.connector()
	if out, code := c.command(nil, append([]string{"init", "--config", c.config, "--backlog", "none"}, w.initFlags...)...); code != 0 {
		w.t.Fatalf("init: exit code %d\n%s", code, out)
	}
	w.exec("select pg_create_logical_replication_slot($1, 'test_decoding')", w.oracle)
	w.sampler = startSampler(w.t, w.dsn, w.slot)
}

// writeConfig writes the configuration of c as it is now.
func (w *world) writeConfig(c *connector) {
	w.t.Helper()
	text, err := yaml.Marshal(map[string]any{
		"name": w.slot, "source": w.source, "sinks": w.sinks, "routes": w.routes, "delivery": w.delivery, "breaker": w.breaker, "retention": w.retention,
		"http": map[string]any{"listen": c.listen},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(c.config, text, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) createDatabase(encoding string) {
	w.t.Helper()
	admin := connect(w.t, w.pg.DSN("postgres"))
	defer admin.Close(context.Background())
	sql := "create database " + w.database
	if encoding != "" {
		sql += " encoding '" + encoding + "' lc_collate 'C' lc_ctype 'C' template template0"
	}
	if _, err := admin.Exec(w.t.Context(), sql); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.dropDatabase)
}

// dropDatabase first shuts the door: a connector that is still there must not come back between its slot and its
// database.
func (w *world) dropDatabase() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	admin, err := pgx.Connect(ctx, w.pg.DSN("postgres"))
	if err != nil {
		return // the test's own server, which it left stopped
	}
	defer admin.Close(ctx)
	for _, sql := range []string{
		"alter database " + w.database + " allow_connections false",
		"select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '" + w.database + "'",
		"select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '" + w.database + "'",
		"drop database " + w.database + " with (force)",
	} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			w.t.Errorf("%s: %v", sql, err)
			return
		}
	}
}

// exec runs one statement as superuser and returns the number of its rows.
func (w *world) exec(sql string, args ...any) int64 {
	w.t.Helper()
	conn := connect(w.t, w.dsn)
	defer conn.Close(context.Background())
	tag, err := conn.Exec(w.t.Context(), sql, args...)
	if err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

// ask is the one value of a query.
func ask[T any](w *world, sql string, args ...any) (value T) {
	w.t.Helper()
	conn := connect(w.t, w.dsn)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(w.t.Context(), sql, args...).Scan(&value); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// confirmed is where the slot stands.
func (w *world) confirmed() pglogrepl.LSN {
	w.t.Helper()
	return ask[pglogrepl.LSN](w, "select confirmed_flush_lsn from pg_replication_slots where slot_name = $1", w.slot)
}

// passed waits until the slot has passed an LSN.
func (w *world) passed(patience time.Duration, lsn pglogrepl.LSN) {
	w.t.Helper()
	eventually(w.t, patience, "slot past "+lsn.String(), func() error {
		if at := w.confirmed(); at < lsn {
			return fmt.Errorf("it is at %s", at)
		}
		return nil
	})
}

// allPassed waits until the slot stands at or beyond the last event that was committed.
func (w *world) allPassed(patience time.Duration) {
	w.t.Helper()
	truth := w.truth()
	w.passed(patience, truth[len(truth)-1].commitEnd)
}

// delivered is the number of deliveries that the ledger knows.
func (w *world) delivered() int {
	w.t.Helper()
	return ask[int](w, "select count(*) from outbox_delivery_log where status = 'delivered'")
}

// deliveredAtLeast waits for the ledger to know of so many.
func (w *world) deliveredAtLeast(patience time.Duration, n int) {
	w.t.Helper()
	eventually(w.t, patience, fmt.Sprintf("%d delivered", n), func() error {
		if got := w.delivered(); got < n {
			return fmt.Errorf("the ledger knows of %d", got)
		}
		return nil
	})
}

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// through is a DSN that leads to the same database by another address.
func through(t testing.TB, dsn, address string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = address
	return u.String()
}

// asRole is a DSN of another login.
func asRole(t testing.TB, dsn, role, password string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}
