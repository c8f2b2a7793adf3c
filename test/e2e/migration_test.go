package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// pollingOutbox has the columns of the platform's page. Where that says nothing of types and constraints, they are the
// most awkward for a migration: ids that are text, a list of statuses, a log that refers to the outbox.
const pollingOutbox = `
	create table event_outbox (
		id varchar(255) primary key, aggregate_id varchar(255) not null, aggregate_type varchar(255) not null, event_type varchar(255) not null,
		event_version bigint not null, payload jsonb not null, metadata jsonb default '{}', status varchar(50) not null default 'pending',
		created_at timestamptz default now(), processed_at timestamptz, retry_count int default 0, max_retries int default 3,
		next_retry_at timestamptz, error_message text, tenant_id varchar(255), correlation_id varchar(255), causation_id varchar(255),
		constraint known_status check (status in ('pending', 'processing', 'processed', 'published', 'failed', 'skipped'))
	);
	create index idx_outbox_status on event_outbox (status);
	create index idx_outbox_pending_events on event_outbox (created_at) where status = 'pending';
	create index idx_outbox_retry_ready on event_outbox (next_retry_at) where status = 'failed';
	create index idx_outbox_aggregate on event_outbox (aggregate_type, aggregate_id);
	create index idx_outbox_tenant_id on event_outbox (tenant_id);
	create table outbox_processors (
		id varchar(255) primary key, processor_name text not null, processor_type text not null, configuration jsonb, is_active bool,
		heartbeat_at timestamptz, last_processed_at timestamptz, metrics jsonb
	);
	create table outbox_delivery_log (
		id bigserial primary key, event_id varchar(255) not null references event_outbox, processor_id varchar(255) not null references outbox_processors,
		attempt_number int, status text, started_at timestamptz, completed_at timestamptz, duration_ms int, error_message text
	);
	create table outbox_metrics (
		id bigserial primary key, processor_id varchar(255) references outbox_processors, metric_type text, time_window timestamptz, value numeric, unit text, metadata jsonb
	);
	insert into outbox_processors (id, processor_name, processor_type) values ('p', 'kafka', 'kafka')`

// history are events of before: of each aggregate the first is failed, the second on the wire of a worker that is dead, the others
// wait. They lie in the table in another order than the one in which they were written.
const history = `
	insert into event_outbox (id, aggregate_id, aggregate_type, event_type, event_version, payload, status, created_at, processed_at, retry_count, next_retry_at)
	select format('%s-%s-%s', status, a, n), 'h-' || a, 'order', 'order.changed', 1, jsonb_build_object('n', n), status, now() - interval '1 day' + n * interval '1 second',
		case when status = 'processed' then now() end, case when status = 'failed' then 2 else 0 end, case when status = 'failed' and n = 1 then 'infinity'::timestamptz end
	from (values ('failed', 1), ('processing', 2), ('pending', 3), ('pending', 4), ('pending', 5), ('pending', 6),
			('failed', 0), ('processed', -1), ('published', -2), ('skipped', -3)) as s (status, n),
		generate_series(1, 5) as a
	order by md5(n::text || a)`

// The whole way of docs/migration.md, with its own SQL. Services write all the time and notice nothing; workers poll until
// step 1, and one that was forgotten goes on afterwards.
func TestMigrationFromPolling(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{bare: true})
	w.exec(pollingOutbox)
	w.source["table"], w.source["ledger_schema"] = "${OUTBOX_TABLE:-public.event_outbox}", "outbox"
	role := w.role()
	w.exec("grant insert on event_outbox to " + role)
	m := &migration{world: w, service: asRole(t, w.dsn, role, "secret"), committed: map[string]numbered{}}
	newTable := []string{"OUTBOX_TABLE=public.event_outbox_new"}
	c := w.connector()
	command := func(want exitcode.Code, env []string, args ...string) {
		t.Helper()
		if out, code := c.command(env, append(args, "--config", c.config)...); code != want {
			t.Fatalf("%v: exit code %d, want %d\n%s", args, code, want, out)
		}
	}
	stopWriting := m.write(3)

	// 1. Workers poll, and are stopped.
	stopWorker := m.poll()
	eventually(t, 30*time.Second, "events polled", func() error { return atLeast(len(m.polled()), 30) })
	stopWorker()
	byWorker := m.polled()
	m.addHistory()
	eventually(t, 30*time.Second, "events pending", func() error {
		return atLeast(ask[int](w, "select count(*) from event_outbox where status = 'pending'"), 50)
	})
	w.exec(m.page("### 1."))

	// 2. and 3., the way back, and again.
	command(exitcode.Config, nil, "init")
	w.exec(m.page("### 2."))
	command(0, newTable, "init")
	command(0, newTable, "destroy", "--ledger", "--yes")
	w.exec("drop table event_outbox_new; drop function event_outbox_streamed()")
	w.exec(m.page("### 2."))
	command(0, newTable, "init")

	// 4. A transaction that stays open is in the way; it is no longer when it ends.
	m.exchange()
	if err := m.try(m.page("### 4.")); err == nil {
		t.Error("the tables were exchanged a second time")
	}
	stopWorker = m.poll()

	// 5. Old code and new library side by side; then the rest is cleared away.
	command(0, nil, "init")
	c.start()
	c.ready("leader")
	m.insert(5)
	eventually(t, 30*time.Second, "events of the old code in the new table", func() error {
		return atLeast(ask[int](w, "select count(*) from event_outbox where aggregate_id like 'w-%'"), 200)
	})
	stopWriting()
	stopWorker()
	if got := m.polled(); len(got) != len(byWorker) {
		t.Errorf("a worker that was forgotten found %d events", len(got)-len(byWorker))
	}
	w.exec(m.page("### Afterwards"))
	m.insert(5)
	before := ask[pglogrepl.LSN](w, "select pg_current_wal_insert_lsn()")
	m.insert(1)
	w.passed(time.Minute, before)
	if n := ask[int](w, "select count(*) from outbox.outbox_parked"); n != 0 {
		t.Errorf("%d events are parked", n)
	}
	c.term()
	m.verify(byWorker)
}

// migration is a service with a polling outbox, and what it has done.
type migration struct {
	*world
	service string // DSN of the service

	mu        sync.Mutex
	committed map[string]numbered // by id, what has to arrive
	published []string            // ids, by the workers
	inserted  int
}

// numbered tells the events of an aggregate apart: they were committed in the order of n.
type numbered struct {
	aggregate string
	n         int
}

func (m *migration) page(heading string) string { return snippet(m.t, "migration.md", heading, "sql") }

// try runs SQL as psql does that stops at the first error.
func (m *migration) try(sql string) error {
	conn := connect(m.t, m.dsn)
	defer conn.Close(context.Background())
	_, err := conn.Exec(m.t.Context(), sql)
	return err
}

func (m *migration) commits(id string, e numbered) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.committed[id] = e
}

// polled are the ids that workers have published.
func (m *migration) polled() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.published)
}

// goes runs step again and again beside the test until it is stopped, and wants no error of it.
func (m *migration) goes(every time.Duration, dsn string, step func(context.Context, *pgx.Conn) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		conn, err := pgx.Connect(context.Background(), dsn)
		if err != nil {
			m.t.Error(err)
			return
		}
		defer conn.Close(context.Background())
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if err := step(context.Background(), conn); err != nil {
				m.t.Errorf("beside the migration: %v", err)
				return
			}
		}
	})
	stop = func() { cancel(); running.Wait() }
	m.t.Cleanup(stop)
	return stop
}

// pollingInsert is how the platform's library writes an event: it says itself that it is pending.
const pollingInsert = `insert into event_outbox (id, aggregate_id, aggregate_type, event_type, event_version, payload, metadata, status, created_at,
	retry_count, max_retries, tenant_id) values ($1, $2, 'order', 'order.changed', 1, $3, '{}', 'pending', $4, 0, 3, 't')`

// write starts writers, each of an aggregate of its own, with transactions of some events, a few of them rolled back.
func (m *migration) write(writers int) (stop func()) {
	var stops []func()
	for i := range writers {
		last, transactions := 0, 0
		stops = append(stops, m.goes(10*time.Millisecond, m.service, func(ctx context.Context, conn *pgx.Conn) error {
			tx, err := conn.Begin(ctx)
			if err != nil {
				return err
			}
			transactions++
			n, ids := last, map[string]numbered{}
			for range 1 + transactions%3 {
				n++
				id, aggregate := outbox.NewID(), fmt.Sprintf("w-%d", i)
				if _, err := tx.Exec(ctx, pollingInsert, id, aggregate, fmt.Sprintf(`{"n": %d}`, n), time.Now()); err != nil {
					return err
				}
				ids[id] = numbered{aggregate, n}
			}
			if transactions%7 == 0 {
				return tx.Rollback(ctx)
			}
			if err := tx.Commit(ctx); err != nil {
				return err
			}
			last = n
			for id, e := range ids {
				m.commits(id, e)
			}
			return nil
		}))
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// poll starts a worker as the platform has it: it takes what is due, and tells of each event before, and after, it publishes it.
func (m *migration) poll() (stop func()) {
	return m.goes(5*time.Millisecond, m.dsn, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `select id from event_outbox where status = 'pending' or status = 'failed' and next_retry_at <= now()
			order by created_at limit 10`)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, id := range ids {
			if _, err := conn.Exec(ctx, "update event_outbox set status = 'processing' where id = $1", id); err != nil {
				return err
			}
			m.mu.Lock()
			m.published = append(m.published, id)
			m.mu.Unlock()
			if _, err := conn.Exec(ctx, "update event_outbox set status = 'processed', processed_at = now() where id = $1", id); err != nil {
				return err
			}
			if _, err := conn.Exec(ctx, "insert into outbox_delivery_log (event_id, processor_id, status) values ($1, 'p', 'success')", id); err != nil {
				return err
			}
		}
		return nil
	})
}

// addHistory adds what older workers have left.
func (m *migration) addHistory() {
	m.t.Helper()
	m.exec(history)
	for a := 1; a <= 5; a++ {
		for n := 1; n <= 6; n++ {
			status := []string{1: "failed", 2: "processing", 3: "pending", 4: "pending", 5: "pending", 6: "pending"}[n]
			m.commits(fmt.Sprintf("%s-%d-%d", status, a, n), numbered{fmt.Sprintf("h-%d", a), n})
		}
	}
}

// exchange is step 4, while a transaction of a service has written and is not committed.
func (m *migration) exchange() {
	m.t.Helper()
	ctx := m.t.Context()
	conn := connect(m.t, m.service)
	defer conn.Close(context.Background())
	tx, err := conn.Begin(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	id := outbox.NewID()
	if _, err := tx.Exec(ctx, pollingInsert, id, "late", `{"n": 1}`, time.Now()); err != nil {
		m.t.Fatal(err)
	}
	var pg *pgconn.PgError
	if err := m.try(m.page("### 4.")); !errors.As(err, &pg) || pg.Code != "55P03" {
		m.t.Fatalf("behind an open transaction: %v", err)
	}
	if n := ask[int](m.world, "select (to_regclass('event_outbox_polled') is not null)::int + count(*) from event_outbox_new"); n != 0 {
		m.t.Fatal("what has failed has changed something")
	}
	done := make(chan error, 1)
	go func() { done <- m.try(m.page("### 4.")) }()
	eventually(m.t, 10*time.Second, "waiting for the lock", func() error {
		return atLeast(ask[int](m.world, "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and not granted and relation = 'event_outbox'::regclass"), 1)
	})
	if err := tx.Commit(ctx); err != nil {
		m.t.Fatal(err)
	}
	m.commits(id, numbered{"late", 1})
	err = <-done
	for range 5 { // on a slow machine the commit may have come too late
		if !errors.As(err, &pg) || pg.Code != "55P03" {
			break
		}
		err = m.try(m.page("### 4."))
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// insert writes events of one more aggregate with the new library, as the service.
func (m *migration) insert(events int) {
	m.t.Helper()
	conn := connect(m.t, m.service)
	defer conn.Close(context.Background())
	for range events {
		m.inserted++
		e := outbox.Event{
			ID: outbox.NewID(), AggregateType: "order", AggregateID: "new", EventType: "order.changed", Payload: fmt.Appendf(nil, `{"n": %d}`, m.inserted),
		}
		if err := pgx.BeginFunc(m.t.Context(), conn, func(tx pgx.Tx) error { return outbox.Insert(m.t.Context(), tx, e) }); err != nil {
			m.t.Fatal(err)
		}
		m.commits(e.ID, numbered{"new", m.inserted})
	}
}

// verify wants each event once, by a worker or from the stream, in order.
func (m *migration) verify(byWorker []string) {
	m.t.Helper()
	times, newest := map[string]int{}, map[string]int{}
	see := func(id, by string) {
		times[id]++
		e, owed := m.committed[id]
		switch {
		case !owed:
			m.t.Errorf("%s published event %s, which was not to go out", by, id)
		case times[id] > 1:
			m.t.Errorf("event %s of %s went out %d times, at last by %s", id, e.aggregate, times[id], by)
		case newest[e.aggregate] > e.n:
			m.t.Errorf("event %d of %s came after %d", e.n, e.aggregate, newest[e.aggregate])
		}
		newest[e.aggregate] = max(newest[e.aggregate], e.n)
	}
	for _, id := range byWorker {
		see(id, "a worker")
	}
	delivered := m.log.read()
	for _, d := range delivered {
		see(d.id, "outbox-cdc")
		if e := m.committed[d.id]; d.key != e.aggregate || d.payload != fmt.Sprintf(`{"n": %d}`, e.n) {
			m.t.Errorf("event %s came with key %q and payload %s, want %v", d.id, d.key, d.payload, e)
		}
	}
	for id, e := range m.committed {
		if times[id] == 0 {
			m.t.Errorf("event %s, number %d of %s, is lost", id, e.n, e.aggregate)
		}
	}
	if n := ask[int](m.world, "select count(*) from outbox.outbox_delivery_log where status = 'delivered'"); n != len(delivered) {
		m.t.Errorf("the ledger knows of %d deliveries, %d arrived", n, len(delivered))
	}
	m.t.Logf("%d events by the worker, %d by outbox-cdc", len(byWorker), len(delivered))
}

func atLeast(got, want int) error {
	if got < want {
		return fmt.Errorf("%d, not yet %d", got, want)
	}
	return nil
}
