package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// connectorBench is a migrated database with a slot, and the configuration of a connector over it. The test answers for the sink.
type connectorBench struct {
	t    *testing.T
	conn *pgx.Conn
	cfg  Config

	mu  sync.Mutex
	got []string
}

func newConnectorBench(t *testing.T) *connectorBench { return newConnectorBenchIn(t, pgtest.New(t)) }

func newConnectorBenchIn(t *testing.T, db *pgtest.Database) *connectorBench {
	b := &connectorBench{t: t, conn: db.Conn(t)}
	template := func(s string) router.Template {
		tpl, err := router.ParseTemplate(s)
		if err != nil {
			t.Fatal(err)
		}
		return tpl
	}
	slot := db.Slot(t)
	b.cfg = Config{
		Name: "test",
		Source: Source{
			DSN: db.DSN, ReplicationDSN: db.DSN, MaxConnections: 4, Slot: slot, Publication: slot,
			Table: "public.event_outbox", LedgerSchema: "public", Columns: decoder.DefaultColumns(),
		},
		Sinks: []Sink{{Name: "s", Type: "test", Topic: template("{aggregate_type}"), Key: template("{aggregate_id}")}},
		Delivery: DeliveryConfig{
			BatchSize: 10, Lanes: 4, Timeout: 10 * time.Second, DrainTimeout: 5 * time.Second, MaxRetries: 3,
			Retry: Retry{Initial: 50 * time.Millisecond, Max: time.Second}, MaxInFlight: 1000, MaxInFlightBytes: 1 << 20, MaxEventBytes: 1 << 20,
		},
		Retention: keepsAll,
	}
	b.setSink(func(context.Context, []sinks.Message) []error { return nil })
	_, err := provision.Setup(context.Background(), provision.SetupConfig{
		Source: b.cfg.Source.provision(), DSN: db.DSN, ReplicationDSN: db.DSN,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// setSink sets what the sink answers. received returns what it has accepted.
func (b *connectorBench) setSink(answer fakeSink) {
	b.cfg.Sinks[0].Open = func() (sinks.Sink, error) {
		return fakeSink(func(ctx context.Context, batch []sinks.Message) []error {
			errs := answer(ctx, batch)
			b.mu.Lock()
			defer b.mu.Unlock()
			for i, m := range batch {
				if errs == nil || errs[i] == nil {
					b.got = append(b.got, m.Event.EventType)
				}
			}
			return errs
		}), nil
	}
}

// keepLog returns what the connectors log that are run from here on.
func (b *connectorBench) keepLog() *lockedLog {
	log := &lockedLog{}
	b.cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	return log
}

func (b *connectorBench) received() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.got, " ")
}

// running is a connector at work.
type running struct {
	b         *connectorBench
	connector *Connector
	cancel    context.CancelFunc
	ended     chan error
	health    *monitoring.Health
}

func (b *connectorBench) run() *running {
	cfg := b.cfg
	r := &running{b: b, ended: make(chan error, 1), health: &monitoring.Health{}}
	cfg.Health, cfg.Metrics = r.health, monitoring.NewMetrics("", nil)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r.connector = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	b.t.Cleanup(cancel)
	go func() { r.ended <- r.connector.Run(ctx) }()
	return r
}

// runAndDeliverOne runs the connector, and returns when it has delivered an event, one, of the aggregate a.
func (b *connectorBench) runAndDeliverOne() *running {
	b.t.Helper()
	r := b.run()
	b.event("a", "one")
	b.eventually(logQuery, "one:delivered")
	return r
}

func (r *running) stop() {
	r.b.t.Helper()
	r.cancel()
	if err := <-r.ended; err != nil {
		r.b.t.Errorf("run ended with %v", err)
	}
}

// wantExit waits for Run to end by itself, with this exit code and text.
func (r *running) wantExit(code exitcode.Code, text string) {
	r.b.t.Helper()
	select {
	case err := <-r.ended:
		if exitcode.Of(err) != code || !strings.Contains(err.Error(), text) {
			r.b.t.Errorf("run ended with %v, want exit code %d and %q", err, code, text)
		}
	case <-time.After(15 * time.Second):
		r.b.t.Fatal("run did not end")
	}
}

func (b *connectorBench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.conn.Exec(context.Background(), sql, args...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *connectorBench) query(sql string) string {
	b.t.Helper()
	var s string
	if err := b.conn.QueryRow(context.Background(), "select coalesce(("+sql+")::text, '')").Scan(&s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// event inserts one event; its type is its name.
func (b *connectorBench) event(aggregate, name string) {
	b.t.Helper()
	b.exec(insertEvent, aggregate, name)
}

const insertEvent = `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('t', $1, $2, '{}')`

// benchPatience is how long a test waits for what has to come: a busy machine may take long for tens of thousands of events with the race detector.
const benchPatience = time.Minute

// eventually waits until a query gives what is wanted.
func (b *connectorBench) eventually(sql, want string) {
	b.t.Helper()
	deadline := time.Now().Add(benchPatience)
	for {
		got := b.query(sql)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: got %q for %s, want %q; received: %s", sql, got, benchPatience, want, b.received())
		}
		time.Sleep(10 * time.Millisecond) // between two checks
	}
}

const (
	logQuery       = "select string_agg(o.event_type || ':' || l.status, ' ' order by l.commit_lsn, l.tx_index) from outbox_delivery_log l join event_outbox o on o.id = l.event_id where l.status <> 'failed'"
	confirmedQuery = "select confirmed_flush_lsn from pg_replication_slots where slot_name = (select slot_name from outbox_checkpoints)"
)

func TestDeliversRecordsConfirms(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	r := b.run()
	for i := range 10 {
		b.event("a", fmt.Sprintf("e%d", i))
	}
	behind := b.query("select pg_current_wal_lsn()")
	b.exec("begin")
	b.event("a", "rolled back")
	b.exec("rollback")
	want := "e0 e1 e2 e3 e4 e5 e6 e7 e8 e9"
	b.eventually(logQuery, strings.ReplaceAll(want, " ", ":delivered ")+":delivered")
	if got := b.received(); got != want {
		t.Errorf("received %q, want %q", got, want)
	}
	b.eventually("select ("+confirmedQuery+") >= '"+behind+"'::pg_lsn", "true")
	r.stop()
	// A clean stop leaves nothing to be sent again.
	b.event("a", "next")
	r = b.run()
	b.eventually("select count(*) from outbox_delivery_log", "11")
	r.stop()
	if got := b.received(); got != want+" next" {
		t.Errorf("received %q after a restart", got)
	}
}

// An event's index counts all inserts of its transaction, those into other published tables included.
func TestPositionCountsAllInserts(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.exec("create table other (n int)")
	b.exec("alter publication " + b.cfg.Source.Publication + " add table other")
	r := b.run()
	b.exec("begin")
	b.exec("insert into other values (1)")
	b.event("a", "one")
	b.exec("insert into other values (2), (3)")
	b.event("a", "two")
	b.exec("commit")
	b.eventually("select string_agg(tx_index::text, ' ' order by tx_index) from outbox_delivery_log", "1 4")
	r.stop()
}

// One delivery hangs. Events after it that were delivered and recorded are not delivered again by the next session.
func TestRestartSkipsWhatIsSettled(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.cfg.Delivery.DrainTimeout = 100 * time.Millisecond
	stuck := make(chan struct{}, 1)
	b.setSink(func(ctx context.Context, batch []sinks.Message) []error {
		if batch[0].Event.EventType != "stuck" {
			return nil
		}
		select {
		case stuck <- struct{}{}:
		default:
		}
		<-ctx.Done()
		errs := make([]error, len(batch))
		for i := range errs {
			errs[i] = sinks.ErrUnavailable
		}
		return errs
	})
	r := b.run()
	b.event("a", "stuck")
	done := 0
	for i := 0; done < 5; i++ {
		aggregate := fmt.Sprintf("b%d", i)
		lane := func(a string) int { return router.Lane(router.AggregateHash("t", a), b.cfg.Delivery.Lanes) }
		if lane(aggregate) == lane("a") {
			continue
		}
		done++
		b.event(aggregate, fmt.Sprintf("e%d", done))
	}
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "5")
	<-stuck // or nothing is on the wire
	r.cancel()
	if err := <-r.ended; !errors.Is(err, errDrainTimeout) {
		t.Errorf("ended with %v, want that the drain timed out", err)
	}
	b.cfg.Delivery.DrainTimeout = 10 * time.Second // the second session ends cleanly
	b.setSink(func(context.Context, []sinks.Message) []error { return nil })
	b.mu.Lock()
	b.got = nil
	b.mu.Unlock()
	r = b.run()
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "6")
	b.event("a", "last")
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "7")
	r.stop()
	if got := b.received(); got != "stuck last" {
		t.Errorf("the second session delivered %q, want only what was not settled", got)
	}
}

// A table that has lost a column of the mapping stops the connector. Nothing is confirmed beyond the first such row, and nothing is lost.
func TestLostColumnStops(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	r := b.runAndDeliverOne()
	b.exec("alter table event_outbox rename column payload to body")
	b.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, body) values ('t', 'a', 'two', '{}')`)
	r.wantExit(exitcode.Config, "payload")
	// We ask the slot for the row and do not compare LSNs: other tests write into the same WAL, and what lies before the row may be confirmed.
	still := b.query("select count(*) from pg_logical_slot_peek_binary_changes((select slot_name from outbox_checkpoints), null, null, " +
		"'proto_version', '1', 'publication_names', '" + b.cfg.Source.Publication + "') where get_byte(data, 0) = ascii('I')")
	if still != "1" {
		t.Errorf("the slot has moved past a row that could not be decoded: %s rows are left in it, want 1", still)
	}
	// The rows in the WAL are as they were; with the column mapped they are read.
	b.cfg.Source.Columns.Payload = "body"
	r = b.run()
	b.eventually(logQuery, "one:delivered two:delivered")
	r.stop()
}

// A row that is no valid event becomes a dead letter. The connector does not stop.
func TestInvalidRowIsADeadLetter(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.cfg.Delivery.MaxEventBytes = 1000
	r := b.run()
	b.event("a", "one")
	b.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('t', 'a', 'large', to_json(repeat('x', 2000)))`)
	b.event("a", "two")
	b.eventually(logQuery, "one:delivered large:dead two:delivered")
	r.stop()
	if got, want := b.query(`select concat_ws(' ', processor_id, agg_hash, status, event ->> 'event_type', payload is null) from outbox_parked`), "0 0 dead large t"; got != want {
		t.Errorf("parked row %q, want %q", got, want)
	}
	b.run().stop()
	if got := b.received(); got != "one two" {
		t.Errorf("received %q", got)
	}
}

// A process that does not get the slot stands by and is ready. It takes over when the slot is free.
func TestStandby(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	first := b.runAndDeliverOne()
	epoch := b.query("select epoch from outbox_checkpoints")
	second := b.run()
	deadline := time.Now().Add(20 * time.Second)
	for r := second.health.Report(); r.Role != monitoring.RoleStandby || !r.Ready; r = second.health.Report() {
		if time.Now().After(deadline) {
			t.Fatalf("not standing by: %+v", r)
		}
		time.Sleep(10 * time.Millisecond) // between two checks
	}
	// The slot is the lock: without it a session does not touch the ledger.
	if got := b.query("select epoch from outbox_checkpoints"); got != epoch {
		t.Errorf("the epoch is %s, want %s: the process that stands by has taken the ledger over", got, epoch)
	}
	first.stop()
	b.event("a", "two")
	b.eventually(logQuery, "one:delivered two:delivered")
	second.stop()
	if got := b.received(); got != "one two" {
		t.Errorf("received %q", got)
	}
}

// A publication that no longer publishes the inserts stops the connector.
func TestDrift(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	r := b.runAndDeliverOne()
	b.exec("alter publication " + b.cfg.Source.Publication + " set (publish = 'update')")
	c := New(b.cfg)
	db, err := openPostgres(b.cfg.Name, b.cfg.Source)
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	c.db = db
	if _, err := c.preflight(context.Background()); err == nil {
		t.Error("preflight finds nothing wrong")
	}
	if err := db.pool.QueryRow(context.Background(), "select 'public.event_outbox'::regclass::oid").Scan(&c.outbox.oid); err != nil {
		t.Fatal(err)
	}
	if err := c.checkDrift(context.Background()); err == nil || !strings.Contains(err.Error(), "inserts") {
		t.Errorf("drift: %v", err)
	}
	r.cancel()
	if err := <-r.ended; err != nil && exitcode.Of(err) != exitcode.Config {
		t.Error(err)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	c := &Connector{}
	_, err := pgx.Connect(context.Background(), "postgres://u:p@127.0.0.1:1/d?sslmode=disable")
	if !replication.Unreachable(err) {
		t.Errorf("%v is not Unreachable", err)
	}
	if coded := exitcode.With(exitcode.Unavailable, err); !c.fatal(coded) || (&Connector{progress: progress{workedBefore: true}}).fatal(coded) {
		t.Error("exitcode.Unavailable should end the process before the first session only")
	}
}
