package migrations_test

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const file = "004_create_outbox_tables.sql"

func apply(t *testing.T, dsn string, o migrations.Options) {
	t.Helper()
	if err := migrations.Apply(context.Background(), dsn, o); err != nil {
		t.Fatal(err)
	}
}

// all are the files in their order.
func all(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.sql")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	return names
}

// psql runs a file as a person would, after some settings.
func psql(t *testing.T, dsn, path string, settings ...string) {
	t.Helper()
	args := []string{"-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-c", "set client_min_messages = warning"}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	if out, err := exec.Command(tool(t, "psql"), append(args, "-f", path)...).CombinedOutput(); err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
}

// tool finds a client program, the newest that there is: that one reads older servers as well.
func tool(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		t.Fatalf("%s is not in the path: install the PostgreSQL client programs (Debian: postgresql-client)", name)
	}
	return found[len(found)-1]
}

var restrict = regexp.MustCompile(`(?m)^\\(un)?restrict .*\n`)

// dump gives the schema as pg_dump does. An older pg_dump cannot read a newer server; then
// the test is for another machine.
func dump(t *testing.T, dsn string) string {
	t.Helper()
	out, err := exec.Command(tool(t, "pg_dump"), "-s", "-d", dsn).CombinedOutput()
	if bytes.Contains(out, []byte("server version mismatch")) {
		t.Skipf("pg_dump is older than the server: %s", out)
	}
	if err != nil {
		t.Fatalf("pg_dump: %v\n%s", err, out)
	}
	return restrict.ReplaceAllString(string(out), "")
}

func TestApplyEqualsPsql(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]migrations.Options{
		"default": {},
		"mapped":  {Mapped: true, EventIDType: "text"},
		"schema":  {Schema: "the \"ledger"},
		"by day":  {Partitioned: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b, c := pgtest.Unmigrated(t), pgtest.Unmigrated(t), pgtest.Unmigrated(t)
			apply(t, a.DSN, o)
			want := dump(t, a.DSN)
			if !strings.Contains(want, "outbox_delivery_log_2") {
				t.Fatal("no partition in:\n" + want)
			}

			var settings []string
			if o.Mapped {
				settings = []string{"set outbox.mapped = on", "set outbox.event_id_type = text"}
			}
			if o.Partitioned {
				settings = []string{"set outbox.partitioned = on"}
			}
			if o.Schema != "" {
				name := pgx.Identifier{o.Schema}.Sanitize()
				exec1(t, b, "create schema "+name)
				settings = []string{"set search_path = " + name}
			}
			for _, name := range all(t) {
				psql(t, b.DSN, name, settings...)
			}
			if diff := cmp.Diff(want, dump(t, b.DSN)); diff != "" {
				t.Errorf("psql -f makes something else (-apply +psql):\n%s", diff)
			}

			apply(t, b.DSN, o) // init after psql -f
			if diff := cmp.Diff(want, dump(t, b.DSN)); diff != "" {
				t.Errorf("apply after psql -f makes something else (-apply +both):\n%s", diff)
			}

			text, err := migrations.SQL(o)
			if err != nil {
				t.Fatal(err)
			}
			printed := filepath.Join(t.TempDir(), "printed.sql")
			if err := os.WriteFile(printed, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			psql(t, c.DSN, printed)
			psql(t, c.DSN, printed)
			if diff := cmp.Diff(want, dump(t, c.DSN)); diff != "" {
				t.Errorf("what SQL prints makes something else (-apply +printed):\n%s", diff)
			}
			if pending, err := migrations.Pending(context.Background(), c.DSN, o); err != nil || len(pending) != 0 {
				t.Errorf("pending after the printed SQL: %v, %v", pending, err)
			}
		})
	}
}

func exec1(t *testing.T, d *pgtest.Database, sql string, args ...any) {
	t.Helper()
	if _, err := d.Conn(t).Exec(context.Background(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func TestApplyTwiceAndAtOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.Unmigrated(t)
	pending, err := migrations.Pending(ctx, d.DSN, migrations.Options{Schema: "ledger"})
	if diff := cmp.Diff(all(t), pending); diff != "" || err != nil {
		t.Fatalf("pending in a new database: %v %s", err, diff)
	}
	var g errgroup.Group
	for range 3 {
		g.Go(func() error { return migrations.Apply(ctx, d.DSN, migrations.Options{Schema: "ledger"}) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	apply(t, d.DSN, migrations.Options{Schema: "ledger"})
	pending, err = migrations.Pending(ctx, d.DSN, migrations.Options{Schema: "ledger"})
	if len(pending) != 0 || err != nil {
		t.Fatalf("pending afterwards: %v, %v", pending, err)
	}
	var schemas []string
	err = d.Conn(t).QueryRow(ctx, `select array_agg(distinct nspname::text) from pg_class c join pg_namespace n on n.oid = relnamespace
		where relname ~ 'outbox' and nspname !~ '^pg_'`).Scan(&schemas)
	if diff := cmp.Diff([]string{"ledger"}, schemas); diff != "" || err != nil {
		t.Errorf("where the tables are: %v %s", err, diff)
	}
}

func TestTablesInTheWay(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, before string
		options      migrations.Options
		want         string
	}{
		{
			name: "the polling outbox", before: "create table event_outbox (id uuid, status text); create table outbox_metrics (id int, foo int)",
			want: `apply the migrations: ERROR: table event_outbox is not ours (columns missing: aggregate_type, aggregate_id, event_type, ` +
				`event_version, payload, metadata, created_at, max_retries, tenant_id, correlation_id, causation_id; columns unknown: status); ` +
				`table outbox_metrics is not ours (columns missing: processor_id, metric_type, time_window, value, unit, metadata; columns unknown: foo) (SQLSTATE 42P07); ` +
				`use an outbox table that has other columns by mapping them (source.table and source.columns); put the ledger beside other tables of these names by source.ledger_schema`,
		},
		{
			name: "one column more", before: "create table outbox_processors (id int, connector text, processor_name text, processor_type text, " +
				"configuration jsonb, is_active bool, since timestamptz, heartbeat_at timestamptz, last_processed_at timestamptz, metrics jsonb, mine text)",
			want: `apply the migrations: ERROR: table outbox_processors is not ours (columns missing: none; columns unknown: mine) (SQLSTATE 42P07); ` +
				`use an outbox table that has other columns by mapping them (source.table and source.columns); put the ledger beside other tables of these names by source.ledger_schema`,
		},
		{name: "a mapped outbox", before: "create table event_outbox (id bigint, status text)", options: migrations.Options{Mapped: true, EventIDType: "text"}},
		{name: "another schema", before: "create table event_outbox (id bigint, status text)", options: migrations.Options{Schema: "ledger"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := pgtest.Unmigrated(t)
			exec1(t, d, test.before)
			before := dump(t, d.DSN)
			got := ""
			if err := migrations.Apply(context.Background(), d.DSN, test.options); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if after := dump(t, d.DSN); test.want != "" && after != before {
				t.Errorf("a refusal changed something:\n%s", cmp.Diff(before, after))
			}
		})
	}
}

func TestEventIDType(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.Unmigrated(t)
	psql(t, d.DSN, file) // ids are uuids
	err := migrations.Apply(ctx, d.DSN, migrations.Options{Mapped: true, EventIDType: "text"})
	if err == nil || !strings.Contains(err.Error(), "outbox_delivery_log.event_id is of type uuid, the outbox's id needs text") {
		t.Errorf("text ids beside a ledger of uuids: %v", err)
	}
	if err := migrations.Apply(ctx, d.DSN, migrations.Options{EventIDType: "int"}); err == nil {
		t.Error("ids of type int were taken")
	}
}

func TestBadDSN(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{"postgres://u:hunter2@localhost:port/db", "hunter2", "postgres://u:hunter2@127.0.0.1:1/db"} {
		err := migrations.Apply(context.Background(), dsn, migrations.Options{})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	conn := d.Conn(t)
	insert := "insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) values (1, 1, 'delivered', $1, '0/1', 0, 1)"
	const far = "2031-05-06 23:30:00-05"
	_, err := conn.Exec(ctx, insert, far)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "23514" {
		t.Fatalf("insert without a partition: %v", err)
	}
	// At need, by several at once, while somebody reads the log in an open transaction.
	reader, err := d.Conn(t).Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Rollback(ctx) }()
	if _, err := reader.Exec(ctx, "select count(*) from outbox_delivery_log"); err != nil {
		t.Fatal(err)
	}
	var made [4]int
	var g errgroup.Group
	for i := range made {
		c := d.Conn(t)
		g.Go(func() error {
			if _, err := c.Exec(ctx, "set lock_timeout = '10s'; set timezone = 'Asia/Kathmandu'; set datestyle = 'SQL, DMY'"); err != nil {
				return err
			}
			return c.QueryRow(ctx, "select outbox_make_partitions($1, 2)", far).Scan(&made[i])
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if total := made[0] + made[1] + made[2] + made[3]; total != 3 {
		t.Errorf("made %v, want 3 in all", made)
	}
	var partition string
	err = conn.QueryRow(ctx, insert+" returning tableoid::regclass::text", far).Scan(&partition)
	if err != nil || partition != "outbox_delivery_log_20310507" {
		t.Errorf("the row is in %q, %v; its UTC day is 2031-05-07", partition, err)
	}
	if _, err := conn.Exec(ctx, "select outbox_make_partitions(now(), 1000)"); err == nil {
		t.Error("a thousand partitions were made")
	}
	if err := reader.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	// One that was detached is attached again.
	for _, sql := range []string{"alter table outbox_delivery_log detach partition outbox_delivery_log_20310508", "select outbox_make_partitions('2031-05-08 12:00Z', 0)"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Exec(ctx, insert, "2031-05-08 12:00Z"); err != nil {
		t.Error(err)
	}
}

// The function runs with its owner's rights: whoever may call it must not make it run code of his own.
func TestPartitionFunctionIsShut(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	role := "r_" + d.Name
	for _, sql := range []string{
		"create role " + role + " login password 'x'", "grant create, usage on schema public to " + role,
	} {
		exec1(t, d, sql)
	}
	t.Cleanup(func() { exec1(t, d, "drop owned by "+role); exec1(t, d, "drop role "+role) })
	u, err := url.Parse(d.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "x")
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "select outbox_make_partitions()")
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42501" {
		t.Errorf("a stranger calls it: %v", err)
	}
	exec1(t, d, "grant execute on function outbox_make_partitions to "+role)
	// Functions that fit better than those of PostgreSQL, and a table that is found before ours.
	for _, sql := range []string{
		`create function public.format(text, text) returns text language plpgsql as $$ begin raise 'ran as %', current_user; end $$`,
		`create function public.to_char(timestamp, text) returns text language plpgsql as $$ begin raise 'ran as %', current_user; end $$`,
		`create function public.to_regclass(text) returns regclass language plpgsql as $$ begin raise 'ran as %', current_user; end $$`,
		`create function public.eq(oid, regclass) returns bool language plpgsql as $$ begin raise 'ran as %', current_user; end $$`,
		`create operator public.= (leftarg = oid, rightarg = regclass, function = public.eq)`,
		`create temporary table outbox_delivery_log (mine int)`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	var made int
	if err := conn.QueryRow(ctx, "select outbox_make_partitions('2031-01-01Z', 0)").Scan(&made); err != nil || made != 1 {
		t.Errorf("made %d, %v", made, err)
	}
}

func TestUUIDv7(t *testing.T) {
	t.Parallel()
	conn := pgtest.New(t).Conn(t)
	var version, variant, sorted bool
	err := conn.QueryRow(context.Background(), `with ids as (
			select n, outbox_uuid_v7() as id, (pg_sleep(0.0001))::text from generate_series(1, 200) n)
		select bool_and(substr(id::text, 15, 1) = '7'), bool_and(substr(id::text, 20, 1) ~ '[89ab]'),
			array_agg(id order by n) = array_agg(id order by id)
			and abs(extract(epoch from now()) - ('x' || '0000' || left(replace(min(id::text), '-', ''), 12))::bit(64)::bigint / 1000.0) < 60
		from ids`).Scan(&version, &variant, &sorted)
	if err != nil || !version || !variant || !sorted {
		t.Errorf("version %t, variant %t, sorted and of now %t, %v", version, variant, sorted, err)
	}
}

func TestStatusView(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	conn := pgtest.New(t).Conn(t)
	// Two sinks; everything up to 0/100 is settled.
	_, err := conn.Exec(ctx, `
		insert into outbox_processors (connector, processor_name, processor_type) values ('c', 'a', 'kafka'), ('c', 'b', 'kafka');
		insert into outbox_checkpoints (slot_name, state, prefix_lsn, prefix_index, slot_epoch) values ('s', 'ready', '0/100', 0, 1);
		create function event(text) returns uuid language sql as $$ select id from event_outbox where aggregate_id = $1 $$;
		insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'Order', name, 'created', '{}'
			from unnest('{unseen,delivered,half,half passed,refused,discarded,parked,dead,given up,mended,one try,expired,late}'::text[]) name;
		update event_outbox set created_at = '2020-01-01Z' where aggregate_id in ('expired', 'late', 'refused', 'delivered');
		insert into outbox_retention (id, log_dropped_until) values (1, '2020-01-02Z') on conflict (id) do update set log_dropped_until = excluded.log_dropped_until;
		update event_outbox set created_at = '2020-01-02Z' where aggregate_id = 'late';
		insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, error_message, completed_at, commit_lsn, tx_index, epoch)
			select event(name), processor, attempt, status, error, now(), lsn::pg_lsn, 0, 1 from (values
				('delivered', 1, 1, 'delivered', null, '0/200'), ('delivered', 2, 1, 'failed', 'busy', '0/200'), ('delivered', 2, 2, 'delivered', null, '0/200'),
				('half', 1, 1, 'delivered', null, '0/200'), ('half passed', 1, 1, 'delivered', null, '0/100'),
				('refused', 1, 3, 'failed', 'busy', '0/200'), ('discarded', 0, 1, 'discarded', null, '0/90'),
				('parked', 1, 1, 'delivered', null, '0/90'), ('dead', 1, 4, 'dead', 'too large', '0/90')
			) l (name, processor, attempt, status, error, lsn);
		-- A person has discarded a dead letter; one became a delivery; a sink that is tried once has discarded an event.
		insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			select event(name), processor, 1, status, now() + n * interval '1 s', '0/90', 0, 1 from (values
				('given up', 1, 'delivered', 1), ('given up', 2, 'dead', 2), ('given up', 2, 'discarded', 3),
				('mended', 1, 'delivered', 1), ('mended', 2, 'dead', 2), ('mended', 2, 'discarded', 3), ('mended', 2, 'delivered', 4),
				('one try', 1, 'delivered', 1), ('one try', 2, 'discarded', 2)
			) l (name, processor, status, n);
		insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, next_attempt_at, error_message, event) values
			(2, '0/90', 0, event('parked'), 1, 'parked', 2, '2031-01-01Z', 'away', '{}'),
			(1, '0/91', 0, event('dead'), 1, 'dead', 4, 'infinity', 'too large', '{}'), (2, '0/91', 0, event('dead'), 1, 'parked', 1, null, 'away', '{}')`)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(ctx, `select format('%s: %s%s, retries %s%s%s', aggregate_id, status, case when processed_at is not null then ' at' end, retry_count,
		', next ' || (next_retry_at at time zone 'UTC'), ', ' || error_message) from event_outbox_status order by id`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"unseen: pending, retries 0",
		"delivered: delivered at, retries 1",
		"half: pending, retries 0",
		"half passed: delivered at, retries 0",
		"refused: pending, retries 2, busy",
		"discarded: discarded at, retries 0",
		"parked: parked, retries 1, next 2031-01-01 00:00:00, away",
		"dead: dead, retries 3, too large",
		"given up: discarded at, retries 0",
		"mended: delivered at, retries 0",
		"one try: delivered at, retries 0",
		"expired: expired, retries 0",
		"late: pending, retries 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	conn := d.Conn(t)
	left := func() string {
		t.Helper()
		var names string
		err := conn.QueryRow(ctx, `select coalesce(string_agg(name, ' ' order by name), '') from (
			select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'S')
			union all select proname::text from pg_proc where pronamespace = 'public'::regnamespace) as left_over (name)`).Scan(&names)
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	before := left()
	exec1(t, d, "insert into outbox_checkpoints (slot_name, state) values ('a', 'ready'), ('b', 'ready')")
	dropped, err := migrations.Drop(ctx, d.DSN, migrations.Options{Schema: "public"})
	if dropped || err == nil || !strings.Contains(err.Error(), "still serves the slots a, b; destroy those first") || left() != before {
		t.Errorf("a ledger in use: %t, %v", dropped, err)
	}
	exec1(t, d, "delete from outbox_checkpoints")
	dropped, err = migrations.Drop(ctx, d.DSN, migrations.Options{Schema: "public"})
	if !dropped || err != nil || left() != "event_outbox outbox_uuid_v7" {
		t.Errorf("%t, %v, left %s", dropped, err, left())
	}
	exec1(t, d, "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	apply(t, d.DSN, migrations.Options{}) // and make it again
	if left() != before {
		t.Errorf("made again: %s\nbefore: %s", left(), before)
	}
	// Tables of the same names that somebody else made.
	other := pgtest.Unmigrated(t)
	exec1(t, other, "create table outbox_processors (id int)")
	if dropped, err := migrations.Drop(ctx, other.DSN, migrations.Options{Schema: "public"}); dropped || err != nil {
		t.Errorf("%t, %v", dropped, err)
	}
	exec1(t, other, "select * from outbox_processors")
}

// A database of another encoding, such as LATIN1, takes no text that it has no characters for.
func TestFilesAreASCII(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("*.sql")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(text), "\n") {
			if strings.ContainsFunc(line, func(r rune) bool { return r > 0x7e || r < ' ' }) {
				t.Errorf("%s:%d: %q", name, n+1, line)
			}
		}
	}
}
