package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// byDay makes a database with an event_outbox that is partitioned.
func byDay(t *testing.T) (*pgtest.Database, *pgx.Conn) {
	t.Helper()
	d := pgtest.Unmigrated(t)
	apply(t, d.DSN, migrations.Options{Partitioned: true})
	return d, d.Conn(t)
}

// days calls the function that makes the days, and returns what has become of each, and how often.
func days(t *testing.T, conn *pgx.Conn, first string, ahead int) string {
	t.Helper()
	var text string
	err := conn.QueryRow(context.Background(), `select string_agg(to_char(day, 'YYYY-MM-DD') || ' ' || state, ', ' order by day) from outbox_make_event_partitions($1::text::timestamptz, $2)`, first, ahead).Scan(&text)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

const insertAt = "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) values ('a', '1', 'e', '{}', $1::text::timestamptz) returning tableoid::regclass::text"

func partitionOf(t *testing.T, conn *pgx.Conn, at string) (name string) {
	t.Helper()
	if err := conn.QueryRow(context.Background(), insertAt, at).Scan(&name); err != nil {
		t.Fatalf("at %s: %v", at, err)
	}
	return name
}

// Every time has a place: its day's partition, or the default one. A day of which the default partition has rows is not made.
func TestOutboxByDay(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	_, conn := byDay(t)
	var ahead int
	err := conn.QueryRow(ctx, `select count(*) from generate_series(0, 14) n
		join pg_class on relispartition and relname = 'event_outbox_' || to_char((now() at time zone 'UTC')::date + n, 'YYYYMMDD')`).Scan(&ahead)
	if err != nil || ahead != 15 {
		t.Errorf("%d days are there, %v; want today and 14 more", ahead, err)
	}
	for _, sql := range []string{"set timezone = 'Asia/Kathmandu'", "set datestyle = 'SQL, DMY'"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	for at, want := range map[string]string{
		"2031-01-01 00:00:00Z": "event_outbox_default", "1970-01-01Z": "event_outbox_default", "-infinity": "event_outbox_default",
		"9999-12-31Z": "event_outbox_default", "infinity": "event_outbox_default",
	} {
		if got := partitionOf(t, conn, at); got != want {
			t.Errorf("%s is in %s", at, got)
		}
	}
	if _, err := conn.Exec(ctx, "create table event_outbox_20301231 ()"); err != nil { // of somebody else
		t.Fatal(err)
	}
	const want = "2030-12-30 made, 2030-12-31 made, 2031-01-01 rows, 2031-01-02 made"
	if diff := cmp.Diff(want, strings.ReplaceAll(days(t, conn, "2030-12-30 23:59Z", 3), "there", "made")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(strings.ReplaceAll(want, "made", "there"), days(t, conn, "2030-12-30 00:00Z", 3)); diff != "" {
		t.Error(diff)
	}
	for at, want := range map[string]string{
		"2030-12-30 23:59:59.999999Z": "event_outbox_20301230", "2030-12-31 00:00:00Z": "event_outbox_20301231_", "2031-01-01 12:00Z": "event_outbox_default",
		"2031-01-02 23:00Z": "event_outbox_20310102",
	} {
		if got := partitionOf(t, conn, at); got != want && !(strings.HasSuffix(want, "_") && strings.HasPrefix(got, want)) {
			t.Errorf("%s is in %s, want %s", at, got, want)
		}
	}
	if _, err := conn.Exec(ctx, "delete from event_outbox_default where created_at >= '2031-01-01Z' and created_at < '2031-01-02Z'"); err != nil {
		t.Fatal(err)
	}
	if got := days(t, conn, "2031-01-01Z", 0); got != "2031-01-01 made" {
		t.Errorf("once its rows are gone: %s", got)
	}
	// An id is unique in its day, in the default partition as well.
	for _, at := range []string{"2031-01-02Z", "2040-01-01Z"} {
		sql := fmt.Sprintf("insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) values ('0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f', 'a', '1', 'e', '{}', '%s'::timestamptz + $1)", at)
		if _, err := conn.Exec(ctx, sql, "0 s"); err != nil {
			t.Fatal(err)
		}
		var pg *pgconn.PgError
		if _, err := conn.Exec(ctx, sql, "1 hour"); !errors.As(err, &pg) || pg.Code != "23505" {
			t.Errorf("the same id again: %v", err)
		}
		if tag, err := conn.Exec(ctx, sql+" on conflict do nothing", "1 hour"); err != nil || tag.RowsAffected() != 0 {
			t.Errorf("on conflict do nothing: %v, %v", tag, err)
		}
	}
	if _, err := conn.Exec(ctx, "select from outbox_make_event_partitions(now(), 1000)"); err == nil {
		t.Error("a thousand partitions were made")
	}
}

// A default partition that is large is not read while others wait for it, unless a person asks for that.
func TestLargeDefaultPartition(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	_, conn := byDay(t)
	_, err := conn.Exec(ctx, `alter table event_outbox_default alter column payload set storage external;
		insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
		select 'a', '1', 'e', to_json(repeat('x', 1800)), '2000-01-01' from generate_series(1, 20000)`)
	if err != nil {
		t.Fatal(err)
	}
	if got := days(t, conn, "2031-01-01Z", 0); got != "2031-01-01 large" {
		t.Error(got)
	}
	// What docs/partitions.md says: a constraint that shows that the days have no rows is checked without a lock on writers.
	for _, sql := range []string{
		"alter table event_outbox_default add constraint no_days check (created_at < '2031-01-01Z' or created_at >= '2031-01-03Z') not valid",
		"alter table event_outbox_default validate constraint no_days",
		"set outbox.scan_default = on; set client_min_messages = debug1",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if got := days(t, conn, "2031-01-01Z", 1); got != "2031-01-01 made, 2031-01-02 made" {
		t.Error(got)
	}
	if _, err := conn.Exec(ctx, "alter table event_outbox_default drop constraint no_days"); err != nil {
		t.Error(err)
	}
}

// Somebody who reads all of the outbox for long keeps a day from being made, and nobody waits longer than the lock_timeout.
func TestDaysWaitForNobody(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d, conn := byDay(t)
	reader := d.Conn(t)
	for _, sql := range []string{"begin", "select count(*) from event_outbox"} {
		if _, err := reader.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if got := days(t, conn, "2031-01-01Z", 0); got != "2031-01-01 locked" {
		t.Errorf("with a reader: %s", got)
	}
	if _, err := reader.Exec(ctx, "rollback"); err != nil {
		t.Fatal(err)
	}
	// An open insert into a day that exists is in nobody's way.
	for _, sql := range []string{"begin", "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')"} {
		if _, err := reader.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if got := days(t, conn, "2031-01-01Z", 0); got != "2031-01-01 made" {
		t.Errorf("with a writer of today: %s", got)
	}
	if _, err := reader.Exec(ctx, "commit"); err != nil {
		t.Fatal(err)
	}
	var patience string
	if err := conn.QueryRow(ctx, "show lock_timeout").Scan(&patience); err != nil || patience != "0" {
		t.Errorf("lock_timeout is %s afterwards, %v", patience, err)
	}
}

// Beside a plain event_outbox, and beside one that its owner has partitioned otherwise, the function does nothing.
func TestDaysOfOtherTables(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	conn := d.Conn(t)
	for _, sql := range []string{"", "drop table event_outbox cascade; create table event_outbox (id uuid, created_at timestamptz) partition by hash (id)"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
		var rows int
		if err := conn.QueryRow(ctx, "select count(*) from outbox_make_event_partitions()").Scan(&rows); err != nil || rows != 0 {
			t.Errorf("%d rows, %v", rows, err)
		}
	}
}

// A plain event_outbox does not become partitioned by asking for it, and a partitioned one stays so.
func TestPartitionedAndPlain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	plain := pgtest.New(t)
	const want = `exists and is not partitioned`
	for _, clear := range []string{"", "delete from outbox_migrations"} {
		exec1(t, plain, clear)
		before := dump(t, plain.DSN)
		err := migrations.Apply(ctx, plain.DSN, migrations.Options{Partitioned: true})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "docs/partitions.md#existing") {
			t.Errorf("%v", err)
		}
		if after := dump(t, plain.DSN); after != before {
			t.Error(cmp.Diff(before, after))
		}
	}
	text, err := migrations.SQL(migrations.Options{Partitioned: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Conn(t).Exec(ctx, text); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("printed: %v", err)
	}
	d, _ := byDay(t)
	before := dump(t, d.DSN)
	exec1(t, d, "delete from outbox_migrations")
	apply(t, d.DSN, migrations.Options{})
	if after := dump(t, d.DSN); after != before {
		t.Errorf("init without the option changed a partitioned outbox:\n%s", cmp.Diff(before, after))
	}
	// The ledger goes, the outbox stays and takes events, and the ledger comes again.
	exec1(t, d, "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	if dropped, err := migrations.Drop(ctx, d.DSN, migrations.Options{Schema: "public"}); err != nil || !dropped {
		t.Fatal(dropped, err)
	}
	exec1(t, d, "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	apply(t, d.DSN, migrations.Options{Partitioned: true})
	after := dump(t, d.DSN)
	if lines := func(s string) []string { l := strings.Split(s, "\n"); slices.Sort(l); return l }; !slices.Equal(lines(after), lines(before)) {
		t.Errorf("made again:\n%s", cmp.Diff(before, after))
	}
}

// The function runs with its owner's rights, and whoever may call it cannot make it run code of his own. Nobody may call it at first.
func TestDaysAmongStrangers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d, conn := byDay(t)
	role, thief := intruder(t, d)
	call := "select state from public.outbox_make_event_partitions('2031-01-01 12:00Z', 0)"
	var pg *pgconn.PgError
	if _, err := thief.Exec(ctx, call); !errors.As(err, &pg) || pg.Code != "42501" {
		t.Errorf("a stranger calls it: %v", err)
	}
	exec1(t, d, "grant execute on function outbox_make_event_partitions to "+role)
	for _, sql := range []string{
		"create function public.format(text, text) returns text language plpgsql as $$ begin raise 'ran as %', current_user; end $$",
		"create function public.to_char(timestamp, text) returns text language plpgsql as $$ begin raise 'ran as %', current_user; end $$",
		"create temporary table event_outbox (mine int)", "create table public.event_outbox_20310101 (mine int)",
		"set search_path = public, pg_catalog",
	} {
		if _, err := thief.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	var state string
	if err := thief.QueryRow(ctx, call).Scan(&state); err != nil || state != "made" {
		t.Errorf("%s, %v", state, err)
	}
	if got := partitionOf(t, conn, "2031-01-01Z"); !strings.HasPrefix(got, "event_outbox_20310101_") {
		t.Errorf("the row is in %s", got)
	}
	bound(t, d, role)
	exec1(t, d, "alter function outbox_make_event_partitions owner to "+role)
	exec1(t, d, "delete from outbox_migrations where version_id = 8")
	err := migrations.Apply(ctx, d.DSN, migrations.Options{Schema: "public"})
	if err == nil || !strings.Contains(err.Error(), "belongs to role "+role+", who could run code with your rights") {
		t.Errorf("a function of a stranger: %v", err)
	}
}

// An old day goes when it is empty, and not before: neither while a transaction with an old created_at is open, nor with its row. Nobody
// waits long for it. Whoever has yet to decode its rows still gets them, as rows of event_outbox.
func TestEmptyDaysAreDropped(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d, conn := byDay(t)
	slot := d.Slot(t)
	run := func(c *pgx.Conn, sql string, args ...any) {
		t.Helper()
		if _, err := c.Exec(ctx, sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	drop := func() (name string) {
		t.Helper()
		if err := conn.QueryRow(ctx, "select coalesce(outbox_drop_event_partition(), 'none')").Scan(&name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	run(conn, "create publication p for table event_outbox with (publish = 'insert', publish_via_partition_root = true)")
	run(conn, "select pg_create_logical_replication_slot($1, 'pgoutput')", slot)
	if got := days(t, conn, "2020-01-01Z", 1); got != "2020-01-01 made, 2020-01-02 made" {
		t.Fatal(got)
	}
	partitionOf(t, conn, "2020-01-01 12:00Z")
	partitionOf(t, conn, "2020-01-02 12:00Z")
	if got := drop(); got != "none" {
		t.Errorf("with rows: %s", got)
	}
	run(conn, "delete from event_outbox where created_at = '2020-01-01 12:00Z'")
	late := d.Conn(t)
	run(late, "begin")
	partitionOf(t, late, "2020-01-01 13:00Z")
	if got := drop(); got != "none" {
		t.Errorf("with a late row that is not committed: %s", got)
	}
	run(late, "commit")
	if got := drop(); got != "none" {
		t.Errorf("with a late row: %s", got)
	}
	run(conn, "delete from event_outbox where created_at = '2020-01-01 13:00Z'")
	run(late, "begin")
	run(late, "select count(*) from event_outbox")
	if got := drop(); got != "none" {
		t.Errorf("with a reader: %s", got)
	}
	run(late, "rollback")
	if got := drop(); got != "public.event_outbox_20200101" {
		t.Errorf("dropped %s", got)
	}
	if got := drop(); got != "none" {
		t.Errorf("then %s", got)
	}
	if got := partitionOf(t, conn, "2020-01-01 14:00Z"); got != "event_outbox_default" {
		t.Errorf("a row that comes later is in %s", got)
	}
	// Four inserts were committed: two into the partition that is gone. All come as rows of one relation, the root.
	var inserts int
	var relations []string
	err := conn.QueryRow(ctx, `with m as (select data from pg_logical_slot_get_binary_changes($1, null, null, 'proto_version', '1', 'publication_names', 'p'))
		select count(*) filter (where get_byte(data, 0) = ascii('I')), array_agg(distinct encode(substring(data from 2 for 4), 'hex')) filter (where get_byte(data, 0) = ascii('I')) from m`, slot).
		Scan(&inserts, &relations)
	if err != nil || inserts != 4 || len(relations) != 1 {
		t.Errorf("%d inserts of the relations %v, %v", inserts, relations, err)
	}
}
