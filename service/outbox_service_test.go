package service_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/outboxtest"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func slot() string { return "test_" + strings.ToLower(rand.Text()) }

// configOf returns a configuration for a database of outboxtest, with a slot of its own.
func configOf(t *testing.T, db *sql.DB, publishers ...service.Publisher) service.OutboxServiceConfig {
	return service.OutboxServiceConfig{
		ServiceName: "shop", DatabaseURL: outboxtest.DSN(t, db), Slot: slot(), Publishers: publishers,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func newService(t *testing.T, db *sql.DB, c service.OutboxServiceConfig) *service.OutboxService {
	t.Helper()
	s, err := service.NewOutboxService(db, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() }) // of a test that has failed
	return s
}

func start(t *testing.T, s *service.OutboxService) {
	t.Helper()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
}

func stop(t *testing.T, s *service.OutboxService) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, s *service.OutboxService, aggregateID string, types ...string) {
	t.Helper()
	var events []outbox.Event
	for _, typ := range types {
		events = append(events, outbox.Event{AggregateType: "order", AggregateID: aggregateID, EventType: typ, Payload: []byte("{}")})
	}
	if err := s.Wrapper.ExecuteWithOutbox(t.Context(), service.EventProducingOperation{Events: outbox.DomainEvents(events...)}); err != nil {
		t.Fatal(err)
	}
}

// slow is a publisher that is so slow that some events are always being delivered.
type slow struct{ *outboxtest.Sink }

func (s slow) Publish(ctx context.Context, e *outbox.OutboxEntry) error {
	select {
	case <-time.After(time.Millisecond):
		return s.Sink.Publish(ctx, e)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// load commits events of several aggregates until the returned function is called. That returns the committed events, by
// aggregate and in order. There are only so many that a slow publisher on a slow machine can deliver them while an
// assertion waits.
func load(t *testing.T, w *service.Wrapper) (end func() map[string][]string) {
	t.Helper()
	var stopping atomic.Bool
	var g sync.WaitGroup
	var mu sync.Mutex
	committed := map[string][]string{}
	for a := range 4 {
		aggregate := fmt.Sprintf("a%d", a)
		g.Go(func() {
			for n := 0; n < 500 && !stopping.Load(); n++ {
				typ := fmt.Sprintf("e%05d", n)
				err := w.ExecuteWithOutbox(context.Background(), service.EventProducingOperation{Events: outbox.DomainEvents(outbox.Event{
					AggregateType: "order", AggregateID: aggregate, EventType: typ, Payload: []byte("{}"),
				})})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				committed[aggregate] = append(committed[aggregate], typ)
				mu.Unlock()
			}
		})
	}
	return func() map[string][]string {
		stopping.Store(true)
		g.Wait()
		return committed
	}
}

// await waits for a condition.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); !condition(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// One replica streams and another stands by. When the first is stopped under load, the second takes over, and every event
// is delivered, in order.
func TestTakeOverUnderLoad(t *testing.T) {
	db := outboxtest.NewDB(t)
	leaks := goleak.IgnoreCurrent() // the server's, and that of db's connections
	published := outboxtest.NewSink()
	c := configOf(t, db, slow{published})
	c.WorkerCount, c.BatchSize = 2, 10
	first, second := newService(t, db, c), newService(t, db, c)
	start(t, first)
	start(t, second)
	if a, b := first.GetStatus(), second.GetStatus(); a.Role != "leader" || b.Role != "standby" || !a.Ready || !b.Ready || !a.Running || !b.Running {
		t.Fatalf("first %+v, second %+v", a, b)
	}
	end := load(t, first.Wrapper)
	await(t, "the first delivers", func() bool { return len(published.Published()) > 50 })
	stop(t, first)
	if st := first.GetStatus(); st.Running || st.Ready || st.Role != "" {
		t.Errorf("stopped: %+v", st)
	}
	n := len(published.Published())
	await(t, "the second delivers", func() bool { return len(published.Published()) > n+50 })
	if role := second.GetStatus().Role; role != "leader" {
		t.Errorf("the second is %s", role)
	}
	committed := end()
	for aggregate, types := range committed {
		published.AssertPublished(t, aggregate, types...)
	}
	stop(t, second)
	var tries, events int
	if err := db.QueryRow("select count(*), count(distinct event_id) from outbox_delivery_log where status = 'delivered'").Scan(&tries, &events); err != nil {
		t.Fatal(err)
	}
	if total := len(published.Published()); tries != total || events != total {
		t.Errorf("%d deliveries of %d events are recorded, %d came", tries, events, total)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, leaks)
}

// Start and Stop may be called in any order.
func TestStartStop(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDB(t)
	published := outboxtest.NewSink()
	s := newService(t, db, configOf(t, db, published))
	stop(t, s)
	start(t, s)
	if err := s.Start(); err == nil || !strings.Contains(err.Error(), "started already") {
		t.Errorf("started twice: %v", err)
	}
	write(t, s, "1", "placed")
	published.AssertPublished(t, "1", "placed")
	stop(t, s)
	stop(t, s)
	write(t, s, "1", "paid")
	start(t, s) // again
	published.AssertPublished(t, "1", "placed", "paid")
	var g sync.WaitGroup
	for range 3 {
		g.Go(func() { _ = s.Stop() })
	}
	g.Wait()
	if s.GetStatus().Running {
		t.Error("it runs")
	}
}

// Start waits as long as the slot cannot be made. Stop ends the wait.
func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDB(t)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // it only keeps others waiting
	if _, err := tx.Exec("select pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	c := configOf(t, db, outboxtest.NewSink())
	waiting := make(chan struct{})
	c.Logger = slog.New(&onMessage{Handler: c.Logger.Handler(), message: "slot creation waits for open transactions", do: func() { close(waiting) }})
	s := newService(t, db, c)
	started := make(chan error, 1)
	go func() { started <- s.Start() }()
	select {
	case <-waiting:
	case err := <-started:
		t.Fatalf("it did not wait: %v", err)
	}
	stop(t, s)
	if err := <-started; err == nil || err.Error() != "stopped" {
		t.Errorf("start: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	start(t, s)
	stop(t, s)
}

// onMessage is a slog.Handler that calls do when a message is logged for the first time.
type onMessage struct {
	slog.Handler
	message string
	once    sync.Once
	do      func()
}

func (h *onMessage) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == h.message {
		h.once.Do(h.do)
	}
	return h.Handler.Handle(ctx, r)
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	// A service can find the exit code only by this method.
	exit := func(err error) exitcode.Code {
		var coded interface{ ExitCode() int }
		if !errors.As(err, &coded) {
			return -1
		}
		return exitcode.Code(coded.ExitCode())
	}
	db, other := outboxtest.NewDB(t), outboxtest.NewDB(t)
	name := "role_" + strings.ToLower(rand.Text())
	if _, err := db.Exec("create role " + name + " login password 'x'; revoke create on schema public from public"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.Exec("drop role " + name); err != nil {
			t.Error(err)
		}
	})
	poor := outboxtest.DSN(t, db)
	_, host, _ := strings.Cut(poor, "@")
	poor = "postgres://" + name + ":x@" + host
	for what, test := range map[string]struct {
		dsn  string
		code exitcode.Code
		word string
	}{
		"another database": {outboxtest.DSN(t, other), exitcode.Config, "would not be delivered; let both lead to the same"},
		"no rights":        {poor, exitcode.Privilege, `"outbox-cdc init"`},
		"nobody there":     {"postgres://u:hunter2@127.0.0.1:1/d?sslmode=disable", exitcode.Unavailable, "cannot be reached"},
	} {
		c := configOf(t, db, outboxtest.NewSink())
		c.DatabaseURL = test.dsn
		s := newService(t, db, c)
		err := s.Start()
		if exit(err) != test.code || !strings.Contains(err.Error(), test.word) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", what, err)
		}
		if s.GetStatus().Running {
			t.Errorf("%s: it runs", what)
		}
	}
}

// The event_outbox that the service finds by its search_path must be the table that is streamed.
func TestStartRefusesAnotherOutbox(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDB(t)
	if _, err := db.Exec("create schema tenant; create view tenant.event_outbox as select * from public.event_outbox"); err != nil {
		t.Fatal(err)
	}
	c := configOf(t, db, outboxtest.NewSink())
	tenant, err := sql.Open("pgx", c.DatabaseURL+"&search_path=tenant")
	if err != nil {
		t.Fatal(err)
	}
	defer tenant.Close()
	s := newService(t, tenant, c)
	start(t, s) // a view leads on
	stop(t, s)
	if _, err := db.Exec("drop view tenant.event_outbox; create table tenant.event_outbox (like public.event_outbox)"); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err == nil || !strings.Contains(err.Error(), "another event_outbox than public.event_outbox") {
		t.Errorf("got %v", err)
	}
	stop(t, s)
}

// After a migration from the polling outbox, tables of that have the names of the ledger's tables.
func TestLedgerInASchemaOfItsOwn(t *testing.T) {
	db := outboxtest.NewDB(t)
	_, err := db.Exec(`drop table outbox_delivery_log, outbox_parked, outbox_processors, outbox_metrics, outbox_checkpoints cascade;
		create table outbox_processors (id varchar(255) primary key, processor_name text not null)`)
	if err != nil {
		t.Fatal(err)
	}
	published := outboxtest.NewSink()
	c := configOf(t, db, published)
	if err := newService(t, db, c).Start(); err == nil {
		t.Error("it starts with a ledger that is none")
	}
	c.LedgerSchema = "outbox"
	s := newService(t, db, c)
	start(t, s)
	write(t, s, "1", "placed")
	published.AssertPublished(t, "1", "placed")
	stop(t, s)

	t.Setenv("DATABASE_URL", c.DatabaseURL)
	t.Setenv("OUTBOX_SLOT", c.Slot)
	t.Setenv("OUTBOX_LEDGER_SCHEMA", "outbox")
	t.Setenv("OUTBOX_ENABLE_METRICS", "false")
	if s, err = service.Setup(db, service.Preset{Service: "shop", Sinks: []string{"event_bus"}}); err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1)
	s.EventBus.Subscribe("*", func(_ context.Context, m *service.Message) error {
		heard <- m.Event.EventType
		return nil
	})
	start(t, s)
	write(t, s, "1", "paid")
	if got := <-heard; got != "paid" {
		t.Errorf("the handler was given %s", got)
	}
	stop(t, s)
}

// GetStatus says why a connector has ended by itself. It can be started again when the cause is mended.
func TestEndsByItself(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDB(t)
	c := configOf(t, db, outboxtest.NewSink())
	s := newService(t, db, c)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := db.Exec(sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	start(t, s)
	exec("drop publication outbox_cdc")
	exec("select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where slot_name = $1", c.Slot)
	await(t, "it ends", func() bool { return !s.GetStatus().Running })
	if st := s.GetStatus(); st.Ready || !strings.Contains(st.Error, "publication") {
		t.Errorf("%+v", st)
	}
	if err := s.Stop(); err == nil || !strings.Contains(err.Error(), "publication") {
		t.Errorf("stop: %v", err)
	}
	start(t, s)
	if st := s.GetStatus(); !st.Ready || st.Error != "" {
		t.Errorf("started again: %+v", st)
	}
	stop(t, s)
	exec("select pg_drop_replication_slot($1)", c.Slot)
	if err := s.Start(); err == nil || !strings.Contains(err.Error(), "slot") {
		t.Errorf("start without the slot: %v", err)
	}
	stop(t, s)
}

// The bus within the process and the service's own publishers get the same events as other sinks, and their errors count in
// the same way.
func TestBusAndPublishers(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDB(t)
	refusing := &failing{Sink: outboxtest.NewSink(), fails: 1}
	c := configOf(t, db, refusing)
	c.PublisherType = "event_bus"
	own := &closing{Sink: make(chan struct{})}
	c.Sinks = map[string]func() (service.Sink, error){"own": func() (service.Sink, error) { return own, nil }}
	s := newService(t, db, c)
	heard := make(chan string, 10)
	s.EventBus.Subscribe("order.*", func(_ context.Context, m *service.Message) error {
		heard <- m.Event.EventType
		return nil
	})
	start(t, s)
	write(t, s, "1", "order.placed", "invoice.sent", "order.paid")
	for _, want := range []string{"order.placed", "order.paid"} {
		if got := <-heard; got != want {
			t.Errorf("the handler was given %s, not %s", got, want)
		}
	}
	refusing.AssertPublished(t, "1", "order.placed", "invoice.sent", "order.paid")
	await(t, "all is counted", func() bool { return s.Outbox.GetStats().Delivered == 9 })
	stats := s.Outbox.GetStats()
	if stats.Failed != 1 || stats.Dead != 0 || stats.Discarded != 0 {
		t.Errorf("%+v", stats)
	}
	var names []string
	for i, w := range s.WorkerManager.GetWorkerStats() {
		p := s.Outbox.GetProcessorStatus()[i]
		names = append(names, p.Name)
		if w.Processor != p.Name || w.Delivered != 3 || w.Workers != 4 || !p.Healthy || p.Status != "ok" || p.CircuitBreaker != "closed" || p.Type != "in_process" {
			t.Errorf("%+v %+v", p, w)
		}
	}
	if !slices.Equal(names, []string{"event_bus", "failing", "own"}) {
		t.Errorf("processors %q", names)
	}
	stop(t, s)
	select {
	case <-own.Sink:
	default:
		t.Error("the sink of the service's own is not closed")
	}
	if refusing.closed.Load() {
		t.Error("the publisher is closed, and somebody else's")
	}
}

// failing refuses the first events.
type failing struct {
	*outboxtest.Sink
	fails  int32
	calls  atomic.Int32
	closed atomic.Bool
}

func (f *failing) GetName() string { return "failing" }

func (f *failing) Publish(ctx context.Context, e *outbox.OutboxEntry) error {
	if f.calls.Add(1) <= f.fails {
		return errors.New("not this time")
	}
	return f.Sink.Publish(ctx, e)
}

func (f *failing) Close() error { f.closed.Store(true); return nil }

// closing is a sink that accepts all messages, and tells when it is closed.
type closing struct{ Sink chan struct{} }

func (c *closing) Deliver(context.Context, []service.Message) []error { return nil }
func (c *closing) Close() error                                       { close(c.Sink); return nil }
