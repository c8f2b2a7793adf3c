package ledger_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// newDays is a ledger whose outbox is by day, with two days of long ago.
func newDays(t *testing.T) *deleting {
	t.Helper()
	db := pgtest.Unmigrated(t)
	if err := migrations.Apply(context.Background(), db.DSN, migrations.Options{Partitioned: true}); err != nil {
		t.Fatal(err)
	}
	d := &deleting{testLedger: &testLedger{t, db, db.Conn(t)}}
	d.exec(`insert into outbox_checkpoints (slot_name, state, system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn, epoch, slot_epoch)
		values ('slot', 'ready', '42', 1, '0/64', -1, '0/64', 3, 3)`)
	d.exec("select from outbox_make_event_partitions('2020-01-01Z', 1)")
	d.conn = d.pinned()
	d.open(ownOutbox)
	return d
}

// settled inserts n events of a day and writes that they were delivered.
func (d *deleting) settled(n int, at string) {
	d.t.Helper()
	d.exec(`with e as (insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'order', 'a', 'made', '{}', $2::text::timestamptz + i * interval '1 s' from generate_series(1, $1::int) i returning id)
		insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		select id, 1, 1, 'delivered', now(), '0/60', 0, 3 from e`, n, at)
}

// A day whose rows were all looked at is dropped, unless anything has changed since, or somebody uses it or has a say in it.
func TestDropDay(t *testing.T) {
	t.Parallel()
	d := newDays(t)
	d.settled(2500, "2020-01-01Z")
	d.settled(10, "2020-01-02Z")
	ctx := pgtest.Context(t)
	days := func() (all []ledger.OutboxDay) {
		t.Helper()
		all, err := d.rows.Days(ctx, d.conn, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	all := days()
	if len(all) != 2 || all[0].Name != "event_outbox_20200101" || all[0].From != "2020-01-01 00:00:00+00" || all[0].Until != "2020-01-02 00:00:00+00" || all[0].Bytes == 0 || !d.rows.ByDay() {
		t.Fatalf("by day is %v, days %+v", d.rows.ByDay(), all)
	}
	day := all[0]
	look := func() (rows ledger.DayRows) {
		t.Helper()
		q := ledger.ChunkQuery{From: &ledger.OutboxKey{At: day.From}, Until: day.Until, Explain: true}
		for {
			c := d.mustChunk(q)
			if c.Kept.Total() > 0 {
				t.Fatalf("%+v", c)
			}
			rows.Rows, rows.Hash = rows.Rows+c.Deleted, rows.Hash^c.Hash
			if !c.Full {
				return rows
			}
			q.From, q.After = c.Last, true
		}
	}
	drop := func(rows ledger.DayRows, outcome ledger.DayOutcome, reason string) {
		t.Helper()
		began := time.Now()
		got, why, err := d.rows.DropDay(ctx, d.conn, day, rows, time.Minute)
		if err != nil || got != outcome || !strings.Contains(why, reason) {
			t.Errorf("%q, %q, %v; want %q, %q", got, why, err, outcome, reason)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
	}
	rows := look()
	if rows.Rows != 2500 {
		t.Errorf("%d rows are in the day", rows.Rows)
	}
	drop(ledger.DayRows{Rows: rows.Rows, Hash: rows.Hash + 1}, ledger.DayChanged, "2500 rows were found")
	drop(ledger.DayRows{Rows: rows.Rows - 1, Hash: rows.Hash}, ledger.DayChanged, "2499 were looked at")
	d.exec("insert into outbox_backlog (processor_id, mode, status) values (1, 'missing', 'running')")
	drop(rows, ledger.DayHeld, "of outbox_backlog is unfinished")
	d.exec("update outbox_backlog set status = 'done'")
	d.exec("update outbox_checkpoints set state = 'building'")
	drop(rows, ledger.DayHeld, "slot slot is being made")
	d.exec("update outbox_checkpoints set state = 'ready'")
	for what, sql := range map[string][2]string{
		"trigger watch":                     {"create function watch() returns trigger language plpgsql as 'begin return old; end'; create trigger watch after delete on event_outbox for each row execute function watch()", "drop trigger watch on event_outbox"},
		"trigger watch_day":                 {"create trigger watch_day before delete on event_outbox_20200101 for each row execute function pg_catalog.suppress_redundant_updates_trigger()", "drop trigger watch_day on event_outbox_20200101"},
		"rule keep":                         {"create rule keep as on delete to event_outbox do instead nothing", "drop rule keep on event_outbox"},
		"row security of":                   {"alter table event_outbox enable row level security", "alter table event_outbox disable row level security"},
		"because other objects depend":      {"create view of_a_day as select * from event_outbox_20200101", "drop view of_a_day"},
		"is no partition of event_outbox t": {"alter table event_outbox detach partition event_outbox_20200101", "alter table event_outbox attach partition event_outbox_20200101 for values from ('2020-01-01Z') to ('2020-01-02Z')"},
	} {
		d.exec(sql[0])
		drop(rows, ledger.DayRefused, map[bool]string{true: "", false: what}[strings.HasPrefix(what, "because")])
		d.exec(sql[1])
	}

	other := d.db.Conn(t)
	for _, sql := range []string{
		"select count(*) from event_outbox", "select count(*) from event_outbox_default", "lock table event_outbox in row exclusive mode",
		"select from event_outbox_20200101 limit 1 for update", "lock table event_outbox_20200101 in share update exclusive mode",
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) values ('order', 'a', 'late', '{}', '2020-01-01 23:00Z')",
	} {
		pgtest.Exec(t, other, "begin")
		pgtest.Exec(t, other, sql)
		drop(rows, ledger.DayBusy, fmt.Sprintf("somebody uses it: pid %d", other.PgConn().PID()))
		if strings.HasPrefix(sql, "insert") {
			pgtest.Exec(t, other, "commit")
		} else {
			pgtest.Exec(t, other, "rollback")
		}
	}
	drop(rows, ledger.DayChanged, "2501 rows were found")
	pgtest.Exec(t, other, "delete from event_outbox where event_type = 'late'")
	if got := look(); got != rows {
		t.Errorf("%+v were looked at, and then %+v", rows, got)
	}
	drop(rows, ledger.DayDropped, "")
	if all = days(); len(all) != 1 || all[0].Name != "event_outbox_20200102" {
		t.Errorf("days are %+v", all)
	}
	drop(rows, ledger.DayRefused, "is no partition of event_outbox")
	if got := d.query("select count(*)::text || has_function_privilege('pg_monitor', 'outbox_drop_event_day(oid, bigint, bigint)', 'execute') from event_outbox"); got != "10false" {
		t.Errorf("rows that are left, and whether everybody may drop: %s", got)
	}
}

// The day before today stays whatever is wanted of the function, and with WholeDays a day that is old only in part stays whole.
func TestYoungDaysStay(t *testing.T) {
	t.Parallel()
	d := newDays(t)
	ctx := pgtest.Context(t)
	d.exec("select from outbox_make_event_partitions(now() - interval '4 days', 3)")
	all, err := d.rows.Days(ctx, d.conn, 0)
	if err != nil || len(all) != 5 { // 2020 has two
		t.Fatalf("%+v, %v", all, err)
	}
	if all, err = d.rows.Days(ctx, d.conn, 72*time.Hour); err != nil || len(all) != 3 {
		t.Errorf("%+v, %v", all, err)
	}
	var yesterday ledger.OutboxDay
	if err := d.conn.QueryRow(ctx, "select oid from pg_class where relname = 'event_outbox_' || to_char(now() - interval '1 day', 'YYYYMMDD')").Scan(&yesterday.OID); err != nil {
		t.Fatal(err)
	}
	if outcome, reason, err := d.rows.DropDay(ctx, d.conn, yesterday, ledger.DayRows{}, time.Minute); err != nil || outcome != ledger.DayRefused {
		t.Errorf("yesterday: %s, %s, %v", outcome, reason, err)
	}
	d.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) select 'order', 'a', 'made', '{}', date_trunc('day', now() - interval '2 days', 'UTC') + i * interval '1 us' from generate_series(-1, 0) i")
	for _, whole := range []bool{false, true} {
		q := ledger.ChunkQuery{Age: 48 * time.Hour, WholeDays: whole, Explain: true}
		want := map[bool]int64{false: 2, true: 1}[whole]
		if c := d.mustChunk(q); c.Kept.Total() != want {
			t.Errorf("whole days %v: %+v", whole, c)
		}
		if c := d.mustChunk(ledger.ChunkQuery{Age: 24 * time.Hour, Until: dayBefore(t, d), WholeDays: whole, Explain: true}); c.Kept.Total() != 1 {
			t.Errorf("whole days %v, with a bound: %+v", whole, c)
		}
		if _, found, err := d.rows.OldestRow(ctx, d.conn, ledger.ChunkQuery{Age: 96 * time.Hour, WholeDays: whole, Patience: time.Minute}); err != nil || found {
			t.Errorf("whole days %v: an oldest row is found, %v", whole, err)
		}
	}
}

// dayBefore is the beginning of the day before yesterday.
func dayBefore(t *testing.T, d *deleting) string {
	t.Helper()
	return d.query("select date_trunc('day', now() - interval '2 days', 'UTC')::text")
}
