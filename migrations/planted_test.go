package migrations_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// intruder is a login that may create things in the schema public, as everybody may up to PostgreSQL 14.
func intruder(t *testing.T, d *pgtest.Database) (string, *pgx.Conn) {
	t.Helper()
	role := "intruder_" + d.Name
	for _, sql := range []string{
		"create role " + role + " login password 'x'", "grant create, usage on schema public to " + role,
		"create schema loot authorization " + role, "grant usage on schema loot to public",
	} {
		exec1(t, d, sql)
	}
	t.Cleanup(func() { exec1(t, d, "drop owned by "+role+" cascade"); exec1(t, d, "drop role "+role) })
	u, err := url.Parse(d.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "x")
	conn, err := pgx.Connect(context.Background(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return role, conn
}

// bound fails the test if something of ours needs something of the role.
func bound(t *testing.T, d *pgtest.Database, role string) {
	t.Helper()
	conn := d.Conn(t)
	if _, err := conn.Exec(context.Background(), "set search_path = pg_catalog"); err != nil { // or it would be caught here
		t.Fatal(err)
	}
	rows, err := conn.Query(context.Background(), `with theirs as materialized (
			select oid from pg_proc where proowner = $1::text::regrole union all select oid from pg_operator where oprowner = $1::text::regrole
			union all select oid from pg_type where typowner = $1::text::regrole union all select oid from pg_class where relowner = $1::text::regrole)
		select pg_describe_object(classid, objid, objsubid) || ' needs ' || pg_describe_object(refclassid, refobjid, refobjsubid) from pg_depend
		where refobjid in (select oid from theirs) and objid not in (select oid from theirs)
			and not (classid = 'pg_rewrite'::regclass and objid in (select r.oid from pg_rewrite r where ev_class in (select oid from theirs)))
			and not (classid = 'pg_attrdef'::regclass and objid in (select d.oid from pg_attrdef d where adrelid in (select oid from theirs)))
			and not (classid = 'pg_constraint'::regclass and objid in
				(select c.oid from pg_constraint c where contypid in (select oid from theirs) or conrelid in (select oid from theirs)))`, role)
	if err != nil {
		t.Fatal(err)
	}
	needs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(needs) > 0 {
		t.Errorf("%v; %q", err, needs)
	}
}

// Whatever somebody else has made in the schema, it is neither run nor bound.
func TestPlanted(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	printed, err := migrations.SQL(migrations.Options{Schema: "public"})
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "printed.sql")
	if err := os.WriteFile(script, []byte(printed), 0o600); err != nil {
		t.Fatal(err)
	}
	d := pgtest.Unmigrated(t)
	planted := d.Plant(t, "public")
	for name, makeIt := range map[string]func(t *testing.T){
		"init":         func(t *testing.T) { apply(t, d.DSN, migrations.Options{Schema: "public"}) },
		"init, unsaid": func(t *testing.T) { apply(t, d.DSN, migrations.Options{}) },
		"psql":         func(t *testing.T) { psqlAll(t, d.DSN, "public", all(t)...) },
		"psql, path":   func(t *testing.T) { psqlAll(t, d.DSN, "public, pg_catalog", all(t)...) },
		"printed":      func(t *testing.T) { psql(t, d.DSN, script) },
		"ids of text": func(t *testing.T) {
			apply(t, d.DSN, migrations.Options{Schema: "public", Mapped: true, EventIDType: "text"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			makeIt(t)
			makeIt(t)
			bound(t, d, planted.Role)
			conn := d.Conn(t)
			var made int
			err := conn.QueryRow(ctx, "select public.outbox_make_partitions('2031-05-06 12:00Z'::pg_catalog.timestamptz, 3)").Scan(&made)
			if err != nil || made != 4 {
				t.Errorf("%d partitions, %v", made, err)
			}
			if _, err := conn.Exec(ctx, "set search_path = public, pg_catalog"); err != nil { // neither the functions nor the view must depend on it
				t.Fatal(err)
			}
			var outcomes []string
			err = conn.QueryRow(ctx, `with made as materialized (select public.outbox_make_partitions('2020-05-06 12:00Z'::pg_catalog.timestamptz, 0::pg_catalog.int4))
				select pg_catalog.array_agg(outcome) from made, lateral (select * from public.outbox_drop_log_partitions('infinity'::pg_catalog.timestamptz, false)) d`).Scan(&outcomes)
			if diff := cmp.Diff([]string{"dropped"}, outcomes); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
			if name != "ids of text" {
				for _, sql := range []string{
					"insert into public.event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')",
				} {
					if _, err := conn.Exec(ctx, sql); err != nil {
						t.Fatal(err)
					}
				}
				var status string
				if err := conn.QueryRow(ctx, "select status from public.event_outbox_status").Scan(&status); err != nil || status != "pending" {
					t.Errorf("%s, %v", status, err)
				}
			}
			if names, err := migrations.Pending(ctx, d.DSN, migrations.Options{Schema: "public"}); err != nil || len(names) > 0 {
				t.Errorf("pending %q, %v", names, err)
			}
			if dropped, err := migrations.Drop(ctx, d.DSN, migrations.Options{Schema: "public"}); err != nil || !dropped {
				t.Errorf("dropped %t, %v", dropped, err)
			}
			if err := conn.Close(ctx); err != nil {
				t.Error(err)
			}
			planted.CheckNothingCaught(t)
			for _, sql := range []string{"drop table if exists public.event_outbox", "drop function if exists public.outbox_uuid_v7()"} {
				exec1(t, d, sql)
			}
		})
	}
}

// What another role has made under one of our names is refused, whatever it looks like.
func TestStrangers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const rights = ", who could run code with your rights through it"
	for name, test := range map[string]struct{ plant, want string }{
		"table": {
			"create table public.outbox_metrics (id bigint, processor_id int, metric_type text, time_window tstzrange, value float8, unit text, metadata jsonb)",
			"public.outbox_metrics belongs to role %s" + rights,
		},
		"view":              {"create view public.outbox_checkpoints as select 1 as slot_name", "public.outbox_checkpoints belongs to role %s" + rights},
		"status view":       {"create view public.event_outbox_status as select 1 as id", "public.event_outbox_status belongs to role %s" + rights},
		"versions":          {"create view public.outbox_migrations as select 1000 as version_id, loot.note('x')", "public.outbox_migrations belongs to role %s" + rights},
		"name of index":     {"create table public.idx_outbox_aggregate ()", "public.idx_outbox_aggregate belongs to role %s" + rights},
		"sequence":          {"create sequence public.outbox_parked", "public.outbox_parked belongs to role %s" + rights},
		"type":              {"create type public.outbox_backlog as enum ()", "public.outbox_backlog belongs to role %s" + rights},
		"function":          {"create function public.outbox_uuid_v7() returns uuid language sql as 'select gen_random_uuid()'", "function public.outbox_uuid_v7() belongs to role %s" + rights},
		"partitions":        {"create function public.outbox_make_partitions(first timestamptz default now(), days_ahead int default 7) returns int language sql as 'select 1'", "function public.outbox_make_partitions(timestamp with time zone,integer) belongs to role %s" + rights},
		"retention":         {"create table public.outbox_retention (id int, log_dropped_until timestamptz, last_pass_at timestamptz, report jsonb)", "public.outbox_retention belongs to role %s" + rights},
		"type of retention": {"create type public.outbox_retention as enum ()", "public.outbox_retention belongs to role %s" + rights},
		"drops":             {"create function public.outbox_drop_log_partitions(before timestamptz, dry_run boolean) returns int language sql as 'select 1'", "function public.outbox_drop_log_partitions(timestamp with time zone,boolean) belongs to role %s" + rights},
		"another overload":  {"create function public.outbox_make_partitions() returns int language plpgsql as 'begin return loot.note(''overload''); end'", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := pgtest.Unmigrated(t)
			role, thief := intruder(t, d)
			for _, sql := range []string{
				"create table loot.caught (who text, what text); grant insert, select on loot.caught to public",
				"create function loot.note(what text) returns bool language plpgsql as 'begin insert into loot.caught values (current_user, what); return true; end'",
				test.plant,
			} {
				if _, err := thief.Exec(ctx, sql); err != nil {
					t.Fatal(err)
				}
			}
			want := strings.ReplaceAll(test.want, "%s", role)
			for i, got := range []error{
				migrations.Apply(ctx, d.DSN, migrations.Options{Schema: "public"}),
				migrations.Apply(ctx, d.DSN, migrations.Options{}),
				migrations.Check(ctx, d.Conn(t), migrations.Options{Schema: "public"}),
			} {
				byName := !slices.Contains([]string{"function", "partitions", "drops", "name of index", "type", "type of retention"}, name)
				switch {
				case want == "" && got != nil:
					t.Errorf("%d: %v", i, got)
				case want != "" && (i < 2 || byName) && (got == nil || !strings.Contains(strings.ReplaceAll(got.Error(), "function outbox", "function public.outbox"), want)):
					t.Errorf("%d: got  %v\nwant %s", i, got, want)
				}
			}
			if _, err := migrations.Pending(ctx, d.DSN, migrations.Options{Schema: "public"}); err != nil {
				t.Error(err)
			}
			var ran int
			if err := d.Conn(t).QueryRow(ctx, "select count(*) from loot.caught").Scan(&ran); err != nil || ran > 0 {
				t.Errorf("%d times, %v", ran, err)
			}
			bound(t, d, role)
		})
	}
}

// Tables of those who may do anything in the schema anyway are used.
func TestTrustedOwners(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.Unmigrated(t)
	role, _ := intruder(t, d)
	u, err := url.Parse(d.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "x")
	o := migrations.Options{Schema: "cdc"}
	exec1(t, d, "create schema cdc authorization "+role)
	if err := migrations.Apply(ctx, u.String(), o); err != nil { // by the owner of the schema
		t.Fatal(err)
	}
	exec1(t, d, "delete from cdc.outbox_migrations")
	for _, dsn := range []string{d.DSN, u.String()} { // then by a superuser, then by the owner again
		if err := migrations.Apply(ctx, dsn, o); err != nil {
			t.Error(err)
		}
	}
	// By a superuser first, and then by a login that may only use the schema: there is nothing left to do.
	psqlAll(t, d.DSN, "public", all(t)...)
	exec1(t, d, "grant select on public.outbox_migrations to "+role)
	if err := migrations.Apply(ctx, u.String(), migrations.Options{Schema: "public"}); err != nil {
		t.Error(err)
	}
}

// Nobody becomes trusted by making the login of init a member of a role of theirs.
func TestMembershipsThatStrangersGive(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.Unmigrated(t)
	role, thief := intruder(t, d)
	owner, team := "owner_"+d.Name, "team_"+d.Name
	t.Cleanup(func() {
		exec1(t, d, "alter database "+d.Name+" owner to current_user")
		exec1(t, d, "drop owned by "+owner+", "+team+" cascade")
		exec1(t, d, "drop role "+owner+", "+team)
	})
	for _, sql := range []string{
		"create role " + owner + " login password 'x'", "alter database " + d.Name + " owner to " + owner,
		"create role " + team, "grant " + team + " to " + role + " with admin option",
		"grant create, usage on schema public to " + owner + ", " + team,
	} {
		exec1(t, d, sql)
	}
	u, err := url.Parse(d.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(owner, "x")
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(ctx) })
	var version int
	if err := conn.QueryRow(ctx, "select current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	steal := func(sql string) {
		t.Helper()
		if _, err := thief.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	o := migrations.Options{Schema: "public"}
	refused := func(holder string) {
		t.Helper()
		want := "public.outbox_metrics belongs to role " + holder
		for i, got := range []error{migrations.Apply(ctx, u.String(), o), migrations.Check(ctx, conn, o)} {
			if got == nil || !strings.Contains(got.Error(), want) {
				t.Errorf("%d: %v, want %s", i, got, want)
			}
		}
	}
	steal("create table public.outbox_metrics (id bigint, processor_id int, metric_type text, time_window tstzrange, value float8, unit text, metadata jsonb)")
	if version < 150000 { // every login may make others members of itself
		steal("grant " + role + " to " + owner)
		refused(role)
		steal("revoke " + role + " from " + owner)
	}
	steal("alter table public.outbox_metrics owner to " + team)
	steal("grant " + team + " to " + owner)
	refused(team)
	steal("revoke " + team + " from " + owner)
	// The administrator's word counts.
	exec1(t, d, "grant "+team+" to "+owner)
	if err := migrations.Apply(ctx, u.String(), o); err != nil {
		t.Error(err)
	}
}

// The file changes no setting of a session that goes on.
func TestSearchPathIsLeftAlone(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	printed, err := migrations.SQL(migrations.Options{Schema: "cdc"})
	if err != nil {
		t.Fatal(err)
	}
	for name, sql := range map[string]string{"file": string(text), "printed": printed, "within a transaction": "begin;" + string(text) + "create table mine (); commit"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.Unmigrated(t).Conn(t)
			for _, sql := range []string{"create schema app", "set search_path = app, public", sql} {
				if _, err := conn.Exec(ctx, sql); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			err := conn.QueryRow(ctx, `select array[current_setting('search_path'), coalesce(current_setting('outbox.schema', true), ''),
				(select string_agg(relnamespace::regnamespace::text, ' ') from pg_class where relname in ('outbox_parked', 'mine'))]`).Scan(&got)
			want := []string{"app, public", "", map[string]string{"file": "app", "printed": "cdc", "within a transaction": "app app"}[name]}
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}
