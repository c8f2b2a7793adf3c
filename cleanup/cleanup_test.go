package cleanup_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// ownOutbox is the table that init makes, with its ledger.
var ownOutbox = provision.Source{Table: "public.event_outbox", LedgerSchema: "public", Columns: decoder.DefaultColumns()}

// server is a database with a slot that is settled up to 0/64.
type server struct {
	t    *testing.T
	db   *pgtest.Database
	exec func(sql string, args ...any)
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, db: pgtest.New(t)}
	conn := s.db.Conn(t)
	s.exec = func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	s.exec(`insert into outbox_checkpoints (slot_name, state, system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn, epoch, slot_epoch)
		values ('slot', 'ready', '42', 1, '0/64', -1, '0/64', 3, 3)`)
	return s
}

func (s *server) database() *cleanup.Postgres {
	return &cleanup.Postgres{Conn: s.db.Pool(s.t, func(c *pgconn.Config) { ledger.PinRun(c, "slot") }), Source: ownOutbox}
}

// events inserts rows with a second between each other, the last one of this age.
func (s *server) events(n int, age time.Duration) {
	s.t.Helper()
	s.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
		select 'order', 'a', 'made', '{}', now() - $2::interval - ($1 - i) * interval '1 s' from generate_series(1, $1::int) i`, n, age.String())
}

// settle writes that the events were delivered.
func (s *server) settle() {
	s.t.Helper()
	s.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		select id, 1, 1, 'delivered', now(), '0/60', 0, 3 from event_outbox o where not exists (select from outbox_delivery_log where event_id = o.id)`)
}

// count closes its connection at once: tests count until something has come.
func (s *server) count(sql string) (n int64) {
	s.t.Helper()
	conn := s.db.Conn(s.t)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(context.Background(), sql).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// A pass over a real server goes past what cannot be deleted, and deletes all else.
func TestPassOnARealServer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.events(3500, 2*time.Hour)
	s.events(20, time.Minute)
	s.settle()
	s.exec("create table invoice (event uuid references event_outbox)")
	s.exec("insert into invoice select id from event_outbox order by created_at offset 1700 limit 3")
	locker := s.db.Conn(t)
	if _, err := locker.Exec(t.Context(), "begin; select from (select from event_outbox order by created_at limit 2 for update) locked"); err != nil {
		t.Fatal(err)
	}
	s.exec("insert into outbox_metrics (processor_id, metric_type, time_window, value) select 1, 'm', tstzrange(now() - i * interval '1 day', now() - (i - 1) * interval '1 day'), 1 from generate_series(1, 40) i")
	seen := map[string]int64{}
	c := cleanup.New(cleanup.Config{
		Retention: cleanup.Retention{Outbox: time.Hour, Ledger: time.Hour}, Database: s.database(),
		Deleted: func(table string, rows int64) { seen[table] += rows },
	})
	dry, err := c.DryRun(t.Context(), 1_000_000)
	if err != nil || !dry.Complete || dry.Outbox.Deleted != 3498 || dry.Outbox.Kept.Locked != 2 {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	if dry, err := c.DryRun(t.Context(), 1500); err != nil || dry.Complete || !dry.Outbox.More || dry.Outbox.Deleted != 1998 {
		t.Errorf("bounded dry run: %+v, %v", dry, err)
	}
	if n := s.count("select count(*) from event_outbox"); n != 3520 {
		t.Fatalf("a dry run has left %d rows", n)
	}
	r, err := c.Pass(t.Context())
	if err != nil || !r.Complete || !r.FromStart || r.Outbox.Deleted != 3495 || r.Outbox.Kept != (ledger.KeptRows{Locked: 2, Refused: 3}) || r.Outbox.Refused == "" || r.Metrics != 10 {
		t.Errorf("%+v, %v", r, err)
	}
	if seen["event_outbox"] != 3495 || seen["outbox_metrics"] != 10 {
		t.Errorf("told %v", seen)
	}
	if _, err := locker.Exec(t.Context(), "rollback"); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Pass(t.Context()); err != nil || !r.Complete || r.FromStart || r.Outbox.Deleted != 2 {
		t.Errorf("second pass: %+v, %v", r, err)
	}
	if n := s.count("select count(*) from event_outbox"); n != 23 {
		t.Errorf("%d rows are left", n)
	}
}
