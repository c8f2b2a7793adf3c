package service

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// moody is a publisher that accepts or refuses an event by the beginning of its type, until it is told to accept all.
type moody struct {
	away, mended atomic.Bool
}

func (*moody) GetName() string { return "moody" }
func (*moody) Close() error    { return nil }

func (m *moody) Publish(_ context.Context, e *outbox.OutboxEntry) error {
	switch {
	case m.mended.Load():
		return nil
	case strings.HasPrefix(e.EventType, "bad"):
		return fmt.Errorf("never: %w", sinks.ErrPermanent)
	case m.away.Load():
		return fmt.Errorf("not now: %w", sinks.ErrUnavailable)
	}
	return nil
}

// hostile is a world in which somebody else has planted traps in the schema public, before anything of ours was made. The
// service's own sessions have public before pg_catalog on their search_path.
type hostile struct {
	*world
	planted *pgtest.Planted
	service *OutboxService
	sink    *moody
}

func newHostile(t *testing.T, plant func(*pgtest.Database, testing.TB, string) *pgtest.Planted) *hostile {
	t.Helper()
	d := pgtest.Unmigrated(t)
	h := &hostile{planted: plant(d, t, "public"), sink: &moody{}}
	h.world = &world{t: t, admin: d.DSN, conn: d.Conn(t)}
	h.exec("set search_path = pg_catalog")
	db, err := sql.Open("pgx", d.DSN+"&search_path=public,pg_catalog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	h.service, err = NewOutboxService(db, OutboxServiceConfig{
		ServiceName: "shop", DatabaseURL: d.DSN, Slot: d.Slot(t), Publishers: []Publisher{h.sink},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.cfg = h.service.cfg
	t.Cleanup(func() { _ = h.service.Stop() }) // of a test that has failed
	return h
}

func (h *hostile) write(aggregate string, types ...string) {
	h.t.Helper()
	var events []outbox.Event
	for _, typ := range types {
		events = append(events, outbox.Event{AggregateType: "order", AggregateID: aggregate, EventType: typ, Payload: []byte("{}")})
	}
	if err := h.service.Wrapper.ExecuteWithOutbox(pgtest.Context(h.t), EventProducingOperation{Events: outbox.DomainEvents(events...)}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hostile) eventually(query, want string) {
	h.t.Helper()
	got := ""
	deadline := time.After(30 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if got = h.text(query); got == want {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			h.t.Fatalf("%s: %q, want %q", query, got, want)
		}
	}
}

// ok fails the test if a step has returned an error.
func (h *hostile) ok(what string, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%s: %v", what, err)
	}
}

// Nothing that somebody else has put into the ledger's schema is executed: not by init, by the connector, by the producer
// library, or by what people do.
func TestNothingOfOthersIsExecuted(t *testing.T) {
	t.Parallel()
	h := newHostile(t, (*pgtest.Database).Plant)
	ctx := pgtest.Context(t)
	_, err := InitPlan(ctx, h.cfg, InitOptions{})
	h.ok("plan", err)
	_, err = Init(ctx, h.cfg, InitOptions{})
	h.ok("init", err)
	h.ok("start", h.service.Start())

	// Deliveries, dead letters, an outage, and catching up.
	h.write("1", "made", "paid")
	h.write("2", "bad one")
	h.write("3", "bad two")
	h.eventually("select concat_ws(' ', count(*) filter (where status = 'delivered'), count(*) filter (where status = 'dead')) from public.outbox_delivery_log", "2 2")
	h.sink.away.Store(true)
	h.write("4", "made", "paid")
	h.write("5", "made")
	h.eventually("select count(*)::text from public.outbox_parked where status = 'parked' and tries > 0", "2")
	h.people(ctx)
	h.sink.away.Store(false)
	h.sink.mended.Store(true)
	if _, err := admin.ChangeParked(ctx, AdminConfig(h.cfg), admin.Retry, admin.ChangeOptions{}); err != nil {
		t.Error(err)
	}
	h.eventually("select count(*)::text from public.outbox_parked", "0")
	h.saga(ctx)
	h.eventually("select count(*)::text from public.event_outbox_status where status = 'pending'", "0")
	h.ok("stop", h.service.Stop())

	// If the log has no partition for today, the recorder makes it.
	h.exec("drop table public.outbox_delivery_log_" + time.Now().UTC().Format("20060102"))
	h.ok("start again", h.service.Start())
	h.write("6", "made")
	h.eventually("select status from public.event_outbox_status where aggregate_id = '6'", "delivered")
	h.ok("stop again", h.service.Stop())

	_, err = Destroy(ctx, h.cfg, DestroyOptions{Ledger: true})
	h.ok("destroy", err)
	h.planted.CheckNothingCaught(t)
}

// people calls every function of package admin that the commands call.
func (h *hostile) people(ctx context.Context) {
	h.t.Helper()
	for _, status := range append(admin.EventStatuses, "") {
		page, err := admin.Events(ctx, AdminConfig(h.cfg), admin.EventsQuery{Status: status, Limit: 2})
		h.ok("events "+status, err)
		if page.Next != "" {
			_, err = admin.Events(ctx, AdminConfig(h.cfg), admin.EventsQuery{Status: status, Limit: 2, After: page.Next, Filter: admin.Filter{Since: time.Now().Add(-time.Hour)}})
			h.ok("more events "+status, err)
		}
	}
	id := h.text("select event_id::text from public.outbox_parked where status = 'dead' order by commit_lsn limit 1")
	_, err := admin.ShowEvent(ctx, AdminConfig(h.cfg), admin.EventDetailsQuery{ID: id, Payload: true})
	h.ok("show", err)
	_, err = admin.Events(ctx, AdminConfig(h.cfg), admin.EventsQuery{Limit: 2, Filter: admin.Filter{IDs: []string{id}}})
	h.ok("event by id", err)
	_, err = admin.ShowDeadLetters(ctx, AdminConfig(h.cfg), admin.DeadLetterQuery{Filter: admin.Filter{IDs: []string{id}, Error: "never"}, Payload: true, Limit: 5})
	h.ok("dlq show", err)
	if err := admin.EachDeadLetter(ctx, AdminConfig(h.cfg), admin.DeadLetterQuery{Filter: admin.Filter{Sinks: []string{"moody"}}}, func(*admin.ParkedRow) (bool, error) { return true, nil }); err != nil {
		h.t.Errorf("dlq list: %v", err)
	}
	_, err = admin.ChangeParked(ctx, AdminConfig(h.cfg), admin.Discard, admin.ChangeOptions{Filter: admin.Filter{IDs: []string{id}}, Reason: "test"})
	h.ok("discard", err)
	_, err = admin.ChangeParked(ctx, AdminConfig(h.cfg), admin.Retry, admin.ChangeOptions{Filter: admin.Filter{IDs: []string{id}}})
	if err == nil || strings.Contains(err.Error(), "CAUGHT") {
		h.t.Errorf("retry of what was discarded: %v", err)
	}
	_, err = admin.Pause(ctx, AdminConfig(h.cfg), []string{"moody"})
	h.ok("pause", err)
	waiting := h.text("select event_id::text from public.outbox_parked where status = 'parked' order by commit_lsn desc limit 1")
	_, err = admin.ChangeParked(ctx, AdminConfig(h.cfg), admin.Kill, admin.ChangeOptions{Filter: admin.Filter{IDs: []string{waiting}}, Reason: "test"})
	h.ok("kill", err)
	_, err = admin.Resume(ctx, AdminConfig(h.cfg), []string{"moody"})
	h.ok("resume", err)
}

// saga runs a step of a saga that fails, twice, and one that succeeds.
func (h *hostile) saga(ctx context.Context) {
	h.t.Helper()
	manager := outbox.NewOutboxSagaManager(h.service.Wrapper)
	stop := errors.New("stop")
	event := func(typ string) []outbox.DomainEvent {
		return outbox.DomainEvents(outbox.Event{AggregateType: "order", AggregateID: "s", EventType: typ, Payload: []byte("{}")})
	}
	for range 2 {
		err := manager.ExecuteSagaStep(outbox.WithSagaStep(ctx, "pay"), "s1", func(*sql.Tx) error { return stop }, event("undo"), event("done"))
		if !errors.Is(err, stop) || strings.Contains(err.Error(), "CAUGHT") {
			h.t.Errorf("saga: %v", err)
		}
	}
	h.ok("saga", manager.ExecuteSagaStep(outbox.WithSagaStep(ctx, "ship"), "s1", func(*sql.Tx) error { return nil }, event("undo"), event("done")))
}

// The SQL that init prints is run by a person, perhaps as a superuser, with any search_path.
func TestPrintedSQLExecutesNothingOfOthers(t *testing.T) {
	t.Parallel()
	h := newHostile(t, (*pgtest.Database).Plant)
	_, appDSN := h.newRole()
	_, streamDSN := h.newRole()
	h.cfg.Source.DSN, h.cfg.Source.ReplicationDSN = config.DSN(appDSN), config.DSN(streamDSN)
	text, err := InitSQL(pgtest.Context(t), h.cfg, InitOptions{AdminDSN: h.admin})
	h.ok("print", err)
	h.exec("set search_path = public, pg_catalog", text)
	_, err = Init(pgtest.Context(t), h.cfg, InitOptions{})
	h.ok("init", err)
	_, err = Destroy(pgtest.Context(t), h.cfg, DestroyOptions{AdminDSN: h.admin})
	h.ok("destroy", err)
	h.planted.CheckNothingCaught(t)
}

// A ledger that belongs to somebody else is refused before anything of it is read or written.
func TestALedgerOfSomebodyElseIsRefused(t *testing.T) {
	t.Parallel()
	for _, made := range []string{
		`create view outbox_checkpoints as select ''::text as slot_name, 'ready'::text as state, ''::text as system_identifier, '0/1'::pg_lsn as prefix_lsn
			where trap.spring('view of the ledger')`,
		`create view outbox_processors as select 1 as id, 'shop'::text as connector, 'moody'::text as processor_name, true as is_active
			where trap.spring('view of the ledger')`,
		"create view event_outbox_status as select 1 as id where trap.spring('view of the ledger')",
		"create table public.outbox_checkpoints (slot_name text primary key, state text check (trap.spring('constraint')), system_identifier text default trap.spring('default')::text)",
		"create view event_outbox as select 1 as id where trap.spring('view of the outbox')",
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, (*pgtest.Database).Stranger)
			h.planted.Exec(t, made)
			h.exec("revoke create on schema public from " + h.planted.Role) // he could, once; and his things are still there
			ctx := pgtest.Context(t)
			refused := func(what string, err error) {
				t.Helper()
				if err == nil || strings.Contains(err.Error(), "CAUGHT") {
					t.Errorf("%s of %.30s: %v", what, made, err)
				}
			}
			_, err := InitPlan(ctx, h.cfg, InitOptions{})
			if strings.Contains(made, "checkpoints") {
				exitcodetest.Want(t, err, exitcode.Config, h.planted.Role, "source.ledger_schema")
			}
			_, err = Init(ctx, h.cfg, InitOptions{})
			refused("init", err)
			refused("start", h.service.Start())
			_, err = admin.Events(ctx, AdminConfig(h.cfg), admin.EventsQuery{Limit: 1})
			refused("events", err)
			_, err = admin.Pause(ctx, AdminConfig(h.cfg), []string{"moody"})
			refused("pause", err)
			_, err = Destroy(ctx, h.cfg, DestroyOptions{Ledger: true})
			if err != nil && strings.Contains(err.Error(), "CAUGHT") {
				t.Error(err)
			}
			h.planted.CheckNothingCaught(t)
		})
	}
}

// The columns of a mapped table may have types that are not in pg_catalog.
func TestMappedTableOfOtherTypes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec("create domain short as varchar(40)", "create type color as enum ('red', 'blue')", `create table tasks (id short primary key, kind color not null,
		"of" text not null, what short not null, body jsonb not null, at timestamptz not null default now())`)
	file := t.TempDir() + "/outbox.yaml"
	text := "source: {dsn: '" + w.admin + "', slot: " + w.cfg.Source.Slot + `, table: public.tasks, columns: {id: id, aggregate_type: kind, aggregate_id: "of",
    event_type: what, event_version: "", payload: body, metadata: "", created_at: at, max_retries: "", tenant_id: "", correlation_id: "", causation_id: ""}}
sinks: [{type: stdout}]
http: {listen: ""}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.configure(file)
	if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	var stdout lockedBuffer
	c, err := Build(w.cfg, BuildOptions{
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Health: &monitoring.Health{}, Stdout: &stdout, Metrics: monitoring.NewMetrics("", nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(pgtest.Context(t))
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	w.exec("insert into tasks values ('t1', 'red', '1', 'made', '{}')")
	h := &hostile{world: w}
	h.eventually("select count(*)::text from outbox_delivery_log where status = 'delivered'", "1")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	d, err := admin.ShowEvent(pgtest.Context(t), AdminConfig(w.cfg), admin.EventDetailsQuery{ID: "t1", Payload: true})
	if err != nil || len(d.Log) != 1 || d.Event == nil || d.Event.Status != "delivered" || d.Event.AggregateType != "red" || !strings.Contains(stdout.String(), `"red"`) {
		t.Errorf("%+v, %v; stdout %s", d, err, stdout.String())
	}
	w.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event)
		values (1, '0/1', 0, 't2', 1, 'dead', '{"aggregate_type":"order","aggregate_id":"1","event_type":"order.made"}')`)
	if d, err = admin.ShowEvent(pgtest.Context(t), AdminConfig(w.cfg), admin.EventDetailsQuery{ID: "t2", Payload: true}); err != nil || len(d.Parked) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
}
