package provision

import (
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// measuredDB is an outbox with a login that has what init grants, and a connection of it as those of a running connector are.
type measuredDB struct {
	*outboxDB
	name string
	pool *pgxpool.Pool
}

const measuredName = "outbox-cdc measured 1@here"

func newMeasured(t *testing.T, o *outboxDB) *measuredDB {
	name, password := pgtest.NewLogin(t, o.conn)
	o.exec(strings.Join(grantStatements(o.cfg.Source, name), "; "))
	cfg, err := pgxpool.ParseConfig(o.as(name, password))
	if err != nil {
		t.Fatal(err)
	}
	ledger.PinRun(&cfg.ConnConfig.Config, measuredName)
	cfg.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(pgtest.Context(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &measuredDB{o, name, pool}
}

// another opens another connection of the superuser.
func (m *measuredDB) another() *pgx.Conn {
	m.t.Helper()
	conn, err := connect(pgtest.Context(m.t), m.dsn)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (m *measuredDB) measure() Measurement {
	m.t.Helper()
	for tries := 1; ; tries++ {
		got, err := Measure(pgtest.Context(m.t), m.pool, m.cfg.Source, MeasureQuery{ApplicationName: measuredName, Storage: true, Oldest: true})
		if err != nil {
			m.t.Fatal(err)
		}
		if got.StorageTook < measureTimeout || tries == 3 { // else the machine was busy
			return got
		}
	}
}

// size is how large a table is with its partitions, as a superuser sees it.
func (m *measuredDB) size(table string) string {
	m.t.Helper()
	return m.text("select coalesce((select sum(pg_total_relation_size(relid)) from pg_partition_tree($1)), pg_total_relation_size($1))", table)
}

// What init grants is enough for all that is measured, of each kind of outbox.
func TestMeasure(t *testing.T) {
	t.Parallel()
	const insert = "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) select 'a', n::text, 'e', '{}', '2026-01-02 03:04:05.5Z'::timestamptz + n * interval '1 s' from generate_series(0, 999) n"
	for name, prepare := range map[string]func(*testing.T) *outboxDB{
		"plain": func(t *testing.T) *outboxDB {
			o := newSetup(t)
			o.exec(insert)
			return o
		},
		"by day": func(t *testing.T) *outboxDB {
			d := pgtest.Unmigrated(t)
			o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
			if err := migrations.Apply(pgtest.Context(t), d.DSN, migrations.Options{Schema: "public", Partitioned: true}); err != nil {
				t.Fatal(err)
			}
			o.setup()
			o.exec(insert)
			return o
		},
		"mapped": func(t *testing.T) *outboxDB {
			o := newOutbox(t)
			o.exec(`create table "my Events" (id uuid primary key default gen_random_uuid(), kind text not null, what text not null, type text not null, body jsonb not null, at timestamp not null)`,
				`create index on "my Events" (at)`)
			o.cfg.Table = "public.my Events"
			c := &o.cfg.Columns
			c.AggregateType, c.AggregateID, c.EventType, c.Payload, c.CreatedAt = "kind", "what", "type", "body", "at"
			c.EventVersion, c.Metadata, c.MaxRetries, c.TenantID, c.CorrelationID, c.CausationID = "", "", "", "", "", ""
			o.setup()
			o.exec(`insert into "my Events" (kind, what, type, body, at) select 'a', n::text, 'e', '{}', '2026-01-02 03:04:05.5'::timestamp + n * interval '1 s' from generate_series(0, 999) n`)
			return o
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMeasured(t, prepare(t))
			got := m.measure()
			if got.TimeIndexed == nil || !*got.TimeIndexed || got.Storage == nil || got.Storage.Oldest == nil || got.OldestRefused {
				t.Fatalf("no oldest row: %+v, %+v", got, got.Storage)
			}
			if want := time.Date(2026, 1, 2, 3, 4, 5, 5e8, time.UTC); !got.Storage.Oldest.Equal(want) {
				t.Errorf("the oldest row is of %s", got.Storage.Oldest)
			}
			outbox := pgx.Identifier(strings.Split(m.cfg.Table, ".")).Sanitize()
			if want := m.size(outbox); got.Storage.Outbox == nil || fmt.Sprint(*got.Storage.Outbox) != want {
				t.Errorf("the outbox has %v bytes, want %s", got.Storage.Outbox, want)
			}
			for _, table := range ledgerTables() {
				if size, want := got.Storage.Ledger[table], m.size("public."+table); fmt.Sprint(size) != want {
					t.Errorf("%s has %d bytes, want %s", table, size, want)
				}
			}
			if len(got.Storage.Ledger) != len(ledgerTables()) {
				t.Errorf("sizes of %v", got.Storage.Ledger)
			}
			if *got.Plugin != "pgoutput" || got.Spilled == nil || *got.Spilled != 0 || got.XminAge == nil {
				t.Errorf("the slot: %v %v %v", got.Plugin, got.Spilled, got.XminAge)
			}
			if knows := m.text("select (current_setting('server_version_num')::int >= 170000)::text") == "true"; (got.Failover != nil) != knows || (got.Synced != nil) != knows {
				t.Errorf("failover %v, synced %v", got.Failover, got.Synced)
			}
			if got.Connections["active"] != 1 {
				t.Errorf("connections %v, want the one that asks", got.Connections)
			}
			m.exec("delete from " + outbox)
			if got := m.measure(); got.Storage.Oldest != nil {
				t.Errorf("the oldest row of an empty outbox is of %s", got.Storage.Oldest)
			}
		})
	}
}

// What the login may not read, or has no index for, is absent, and nothing else is.
func TestMeasureWithoutRights(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, newSetup(t))
	m.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	for name, step := range map[string]struct{ lose, restore string }{
		"the right to read it": {"revoke select on event_outbox from " + m.name, "grant select on event_outbox to " + m.name},
		"the index":            {"alter index idx_outbox_created_at rename to gone; drop index gone", "create index idx_outbox_created_at on event_outbox (created_at, id)"},
	} {
		m.exec(step.lose)
		got := m.measure()
		if got.Storage == nil || got.Storage.Oldest != nil || got.Storage.Outbox == nil || len(got.Storage.Ledger) != len(ledgerTables()) || got.OldestRefused {
			t.Errorf("without %s: %+v", name, got.Storage)
		}
		// As before, it was thought to be there.
		got, err := Measure(pgtest.Context(t), m.pool, m.cfg.Source, MeasureQuery{ApplicationName: measuredName, Storage: true, Oldest: true, TimeIndexed: new(true)})
		if err != nil || got.XminAge == nil || got.Storage == nil || *got.TimeIndexed {
			t.Errorf("without %s, when it has just gone: %+v, %v", name, got, err)
		}
		m.exec(step.restore)
	}
	if got := m.measure(); got.Storage.Oldest == nil {
		t.Error("the oldest row is not found again")
	}
}

// A table that somebody has locked delays nothing but itself.
func TestMeasureOfALockedTable(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, newSetup(t))
	for _, table := range []string{"event_outbox", "outbox_parked"} {
		tx, err := m.conn.Begin(pgtest.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		pgtest.Exec(t, m.conn, "lock table "+table+" in access exclusive mode")
		got := m.measure()
		if got.Storage != nil || got.XminAge == nil || got.Spilled == nil || got.Connections == nil || got.StorageTook < measureLockPatience {
			t.Errorf("%s is locked: %+v", table, got)
		}
		if err := tx.Rollback(pgtest.Context(t)); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.measure(); got.Storage == nil {
		t.Error("there are no sizes after that")
	}
}

// When the oldest row cannot be looked for, sizes are there all the same. The server refuses as it does after the timeout.
func TestMeasureWithoutTheOldestRow(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, newSetup(t))
	m.exec("alter table event_outbox enable row level security") // which refuses to be read, because our sessions hide no rows
	if got := m.measure(); !got.OldestRefused || got.Storage == nil || got.Storage.Outbox == nil || got.Storage.Oldest != nil || got.StorageTook <= 0 {
		t.Errorf("got %+v", got)
	}
	got, err := Measure(pgtest.Context(t), m.pool, m.cfg.Source, MeasureQuery{ApplicationName: measuredName, Storage: true})
	if err != nil || got.OldestRefused || got.Storage == nil {
		t.Errorf("when it is not looked for: %+v, %v", got, err)
	}
}

// The oldest of sessions, prepared transactions and slots counts, also for a login that sees nothing else of them.
func TestXminAge(t *testing.T) {
	t.Parallel()
	m := newMeasured(t, newSetup(t))
	burn := func() {
		for range 50 {
			m.exec("select pg_current_xact_id()")
		}
	}
	before := *m.measure().XminAge
	holder := m.another()
	pgtest.Exec(t, holder, "begin")
	pgtest.Exec(t, holder, "select pg_current_xact_id()")
	burn()
	if got := *m.measure().XminAge; got < 50 || got < before {
		t.Errorf("with an open transaction it is %d", got)
	}
	pgtest.Exec(t, holder, "rollback")
}

// What sizes of hundreds of partitions cost. The figures in docs/numbers.md are from here:
//
//	OUTBOX_MEASURE_PARTITIONS=400 go test ./provision -run TestMeasureOfManyPartitions -v
func TestMeasureOfManyPartitions(t *testing.T) {
	t.Parallel()
	n := 40
	if text := os.Getenv("OUTBOX_MEASURE_PARTITIONS"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			t.Fatal(err)
		}
	}
	d := pgtest.Unmigrated(t)
	o := newOutboxAt(t, d.DSN, d.Conn(t), d.Slot(t))
	if err := migrations.Apply(pgtest.Context(t), d.DSN, migrations.Options{Schema: "public", Partitioned: true}); err != nil {
		t.Fatal(err)
	}
	o.setup()
	for i := range n {
		day := time.Date(2020, 1, 1+i, 0, 0, 0, 0, time.UTC)
		o.exec(fmt.Sprintf("create table old_%d partition of event_outbox (primary key (id)) for values from ('%s') to ('%s')", i, day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)))
	}
	o.exec(fmt.Sprintf("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) select 'a', n::text, 'e', '{}', '2020-01-01'::timestamptz + n %% %d * interval '1 day' from generate_series(1, 10000) n", n))
	m := newMeasured(t, o)
	first := m.measure()
	if first.Storage == nil || first.Storage.Oldest == nil && !first.OldestRefused {
		t.Fatalf("got %+v", first)
	}
	least := time.Duration(math.MaxInt64)
	for range 20 {
		got := m.measure()
		least = min(least, got.StorageTook)
	}
	if got := m.measure(); !got.OldestRefused && !got.Storage.Oldest.Equal(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("got %+v", got.Storage)
	}
	t.Logf("%d partitions: the first time in a connection %s, then %s", n, first.StorageTook, least)
}
