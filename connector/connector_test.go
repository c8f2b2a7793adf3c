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
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// world is a migrated database with a slot, and a sink that the test is.
type world struct {
	t    *testing.T
	conn *pgx.Conn
	cfg  Config

	mu  sync.Mutex
	got []string
}

func newWorld(t *testing.T) *world { return newWorldIn(t, pgtest.New(t)) }

func newWorldIn(t *testing.T, db *pgtest.Database) *world {
	w := &world{t: t, conn: db.Conn(t)}
	template := func(s string) router.Template {
		tpl, err := router.ParseTemplate(s)
		if err != nil {
			t.Fatal(err)
		}
		return tpl
	}
	slot := db.Slot(t)
	w.cfg = Config{
		Name: "test",
		Source: Source{
			DSN: db.DSN, ReplicationDSN: db.DSN, MaxConnections: 3, Slot: slot, Publication: slot,
			Table: "public.event_outbox", LedgerSchema: "public", Columns: decoder.DefaultColumns(),
		},
		Sinks: []Sink{{Name: "s", Type: "test", Topic: template("{aggregate_type}"), Key: template("{aggregate_id}")}},
		Delivery: DeliveryConfig{
			BatchSize: 10, Lanes: 4, Timeout: 10 * time.Second, DrainTimeout: 5 * time.Second, MaxRetries: 3,
			Retry: Retry{Initial: 50 * time.Millisecond, Max: time.Second}, MaxInFlight: 1000, MaxInFlightBytes: 1 << 20, MaxEventBytes: 1 << 20,
		},
	}
	w.sink(func(context.Context, []sinks.Message) []error { return nil })
	_, err := provision.Setup(context.Background(), provision.SetupConfig{
		Source: (&Connector{cfg: w.cfg}).provisionSource(), DSN: db.DSN, ReplicationDSN: db.DSN,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// sink makes the sink answer so; what it accepts is kept.
func (w *world) sink(answer fakeSink) {
	w.cfg.Sinks[0].Open = func() (sinks.Sink, error) {
		return fakeSink(func(ctx context.Context, batch []sinks.Message) []error {
			errs := answer(ctx, batch)
			w.mu.Lock()
			defer w.mu.Unlock()
			for i, m := range batch {
				if errs == nil || errs[i] == nil {
					w.got = append(w.got, m.Event.EventType)
				}
			}
			return errs
		}), nil
	}
}

func (w *world) received() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.got, " ")
}

// running is a connector at work.
type running struct {
	w      *world
	cancel context.CancelFunc
	ended  chan error
	health *monitoring.Health
}

func (w *world) run() *running {
	cfg := w.cfg
	r := &running{w: w, ended: make(chan error, 1), health: &monitoring.Health{}}
	cfg.Health, cfg.Metrics, cfg.Logger = r.health, monitoring.NewMetrics("", nil), slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	w.t.Cleanup(cancel)
	go func() { r.ended <- New(cfg).Run(ctx) }()
	return r
}

func (r *running) stop() {
	r.w.t.Helper()
	r.cancel()
	if err := <-r.ended; err != nil {
		r.w.t.Errorf("run ended with %v", err)
	}
}

// wantExit waits for Run to end by itself, with this exit code and text.
func (r *running) wantExit(code exitcode.Code, text string) {
	r.w.t.Helper()
	select {
	case err := <-r.ended:
		if exitcode.Of(err) != code || !strings.Contains(err.Error(), text) {
			r.w.t.Errorf("run ended with %v, want exit code %d and %q", err, code, text)
		}
	case <-time.After(15 * time.Second):
		r.w.t.Fatal("run did not end")
	}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.conn.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) query(sql string) string {
	w.t.Helper()
	var s string
	if err := w.conn.QueryRow(context.Background(), "select coalesce(("+sql+")::text, '')").Scan(&s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// event inserts one event; its type is its name.
func (w *world) event(aggregate, name string) {
	w.t.Helper()
	w.exec(insertEvent, aggregate, name)
}

const insertEvent = `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('t', $1, $2, '{}')`

// eventually waits until a query gives what is wanted.
func (w *world) eventually(sql, want string) {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got := w.query(sql)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: got %q for 20 s, want %q; received: %s", sql, got, want, w.received())
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}

const (
	logged    = "select string_agg(o.event_type || ':' || l.status, ' ' order by l.commit_lsn, l.tx_index) from outbox_delivery_log l join event_outbox o on o.id = l.event_id where l.status <> 'failed'"
	confirmed = "select confirmed_flush_lsn from pg_replication_slots where slot_name = (select slot_name from outbox_checkpoints)"
)

func TestDeliversRecordsConfirms(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.run()
	for i := range 10 {
		w.event("a", fmt.Sprintf("e%d", i))
	}
	behind := w.query("select pg_current_wal_lsn()")
	w.exec("begin")
	w.event("a", "rolled back")
	w.exec("rollback")
	want := "e0 e1 e2 e3 e4 e5 e6 e7 e8 e9"
	w.eventually(logged, strings.ReplaceAll(want, " ", ":delivered ")+":delivered")
	if got := w.received(); got != want {
		t.Errorf("received %q, want %q", got, want)
	}
	w.eventually("select ("+confirmed+") >= '"+behind+"'::pg_lsn", "true")
	r.stop()
	// A clean stop leaves nothing to be sent again.
	w.event("a", "next")
	r = w.run()
	w.eventually("select count(*) from outbox_delivery_log", "11")
	r.stop()
	if got := w.received(); got != want+" next" {
		t.Errorf("received %q after a restart", got)
	}
}

// An event's index counts all inserts of its transaction, those into other published tables included.
func TestPositionCountsAllInserts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec("create table other (n int)")
	w.exec("alter publication " + w.cfg.Source.Publication + " add table other")
	r := w.run()
	w.exec("begin")
	w.exec("insert into other values (1)")
	w.event("a", "one")
	w.exec("insert into other values (2), (3)")
	w.event("a", "two")
	w.exec("commit")
	w.eventually("select string_agg(tx_index::text, ' ' order by tx_index) from outbox_delivery_log", "1 4")
	r.stop()
}

// One delivery hangs; what was delivered beyond it and recorded is not delivered again by the next session.
func TestRestartSkipsWhatIsSettled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Delivery.DrainTimeout = 100 * time.Millisecond
	w.sink(func(ctx context.Context, batch []sinks.Message) []error {
		if batch[0].Event.EventType != "stuck" {
			return nil
		}
		<-ctx.Done()
		errs := make([]error, len(batch))
		for i := range errs {
			errs[i] = sinks.ErrUnavailable
		}
		return errs
	})
	r := w.run()
	w.event("a", "stuck")
	done := 0
	for i := 0; done < 5; i++ {
		aggregate := fmt.Sprintf("b%d", i)
		lane := func(a string) int { return router.Lane(router.AggregateHash("t", a), w.cfg.Delivery.Lanes) }
		if lane(aggregate) == lane("a") {
			continue
		}
		done++
		w.event(aggregate, fmt.Sprintf("e%d", done))
	}
	w.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "5")
	r.cancel()
	if err := <-r.ended; !errors.Is(err, errDrainTimeout) {
		t.Errorf("ended with %v, want that the drain timed out", err)
	}
	w.sink(func(context.Context, []sinks.Message) []error { return nil })
	w.mu.Lock()
	w.got = nil
	w.mu.Unlock()
	r = w.run()
	w.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "6")
	w.event("a", "last")
	w.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "7")
	r.stop()
	if got := w.received(); got != "stuck last" {
		t.Errorf("the second session delivered %q, want only what was not settled", got)
	}
}

// A slot whose history is not the checkpoint's is refused, and nothing is delivered past the gap.
func TestForeignHistoryIsRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ sql, text string }{
		"slot moved by somebody else": {"select pg_replication_slot_advance((select slot_name from outbox_checkpoints), pg_current_wal_lsn())", "ahead of the checkpoint"},
		"checkpoint of the future":    {"update outbox_checkpoints set confirmed_lsn = 'FF/0'", "ahead of the server"},
		"promoted":                    {"update outbox_checkpoints set timeline = 99", "timeline"},
		"another cluster":             {"update outbox_checkpoints set system_identifier = '1'", "system identifier"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.event("a", "one")
			w.exec(tt.sql)
			w.run().wantRefusal(exitcode.SlotLost, tt.text)
			if got := w.received(); got != "" {
				t.Errorf("received %q", got)
			}
		})
	}
}

// A schema that lost a needed column stops the connector; nothing is confirmed past it, and nothing is lost.
func TestLostColumnStops(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.run()
	w.event("a", "one")
	w.eventually(logged, "one:delivered")
	w.exec("alter table event_outbox rename column payload to body")
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, body) values ('t', 'a', 'two', '{}')`)
	r.wantExit(exitcode.Config, "payload")
	// The slot itself says so: other tests write into the same WAL, and what lies before the row may be confirmed.
	still := w.query("select count(*) from pg_logical_slot_peek_binary_changes((select slot_name from outbox_checkpoints), null, null, " +
		"'proto_version', '1', 'publication_names', '" + w.cfg.Source.Publication + "') where get_byte(data, 0) = ascii('I')")
	if still != "1" {
		t.Errorf("the slot has moved past a row that could not be decoded: %s rows are left in it, want 1", still)
	}
	// The rows in the WAL are as they were; with the column mapped they are read.
	w.cfg.Source.Columns.Payload = "body"
	r = w.run()
	w.eventually(logged, "one:delivered two:delivered")
	r.stop()
}

// A row that is no valid event is one dead letter, not a stop.
func TestInvalidRowIsADeadLetter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Delivery.MaxEventBytes = 1000
	r := w.run()
	w.event("a", "one")
	w.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('t', 'a', 'large', to_json(repeat('x', 2000)))`)
	w.event("a", "two")
	w.eventually(logged, "one:delivered large:dead two:delivered")
	r.stop()
	if got, want := w.query(`select concat_ws(' ', processor_id, agg_hash, status, event ->> 'event_type', payload is null) from outbox_parked`), "0 0 dead large t"; got != want {
		t.Errorf("parked row %q, want %q", got, want)
	}
	w.run().stop()
	if got := w.received(); got != "one two" {
		t.Errorf("received %q", got)
	}
}

// Whoever does not get the slot stands by, ready, and takes over.
func TestStandby(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.run()
	w.event("a", "one")
	w.eventually(logged, "one:delivered")
	epoch := w.query("select epoch from outbox_checkpoints")
	second := w.run()
	deadline := time.Now().Add(20 * time.Second)
	for r := second.health.Report(); r.Role != monitoring.RoleStandby || !r.Ready; r = second.health.Report() {
		if time.Now().After(deadline) {
			t.Fatalf("not standing by: %+v", r)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	// The slot is the lock: without it a session does not touch the ledger.
	if got := w.query("select epoch from outbox_checkpoints"); got != epoch {
		t.Errorf("the epoch is %s, want %s: whoever stands by has taken the ledger over", got, epoch)
	}
	first.stop()
	w.event("a", "two")
	w.eventually(logged, "one:delivered two:delivered")
	second.stop()
	if got := w.received(); got != "one two" {
		t.Errorf("received %q", got)
	}
}

// A publication that no longer publishes the inserts stops the connector.
func TestDrift(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.run()
	w.event("a", "one")
	w.eventually(logged, "one:delivered")
	w.exec("alter publication " + w.cfg.Source.Publication + " set (publish = 'update')")
	c := New(w.cfg)
	pool, err := c.openPool()
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c.pool = pool
	if _, err := c.preflight(context.Background()); err == nil {
		t.Error("preflight finds nothing wrong")
	}
	if err := pool.QueryRow(context.Background(), "select 'public.event_outbox'::regclass::oid").Scan(&c.outbox.oid); err != nil {
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
	if !Unreachable(err) {
		t.Errorf("%v is not Unreachable", err)
	}
	if coded := exitcode.With(exitcode.Unavailable, err); !c.fatal(coded) || (&Connector{progress: progress{streamedBefore: true}}).fatal(coded) {
		t.Error("exitcode.Unavailable should end the process before the first session only")
	}
}
