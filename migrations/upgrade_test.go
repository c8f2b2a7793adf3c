package migrations_test

import (
	"context"
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

const (
	memberFile = "005_log_member.sql"
	stateFile  = "006_processor_state.sql"
	retainFile = "007_retention.sql"
)

// firstVersion writes the first file as it was before the log had a member and a sink a state, and returns where.
func firstVersion(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	old := string(text)
	for _, cut := range [][2]string{
		{"epoch          int         not null,\n", "epoch          int         not null\n"},
		{" epoch member')", " epoch')"},
		{" metrics state')", " metrics')"},
		{"when 'outbox_processors' then array['state'] end", "end"},
		{"l.delivered and not l.given_up", "l.delivered"},
		{"else array[5] end", "else '{}'::int[] end"},
		{"else array[6] end", "else '{}'::int[] end"},
		{"else array[10] end", "else '{}'::int[] end"},
		{"when 'outbox_checkpoints' then array['database_oid', 'database_name', 'source_hosts']", ""},
		{"when 'outbox_backlog' then array['reason', 'walked', 'finished_at']", ""},
		{"status created_at reason walked finished_at')", "status created_at')"},
		{" updated_at database_oid database_name source_hosts')", " updated_at')"},
		{"created_at    timestamptz not null default now(),\n", "created_at    timestamptz not null default now()\n"},
		{"updated_at        timestamptz not null default now(),\n", "updated_at        timestamptz not null default now()\n"},
		{"      ('outbox_retention', null, 'id log_dropped_until last_pass_at report'),\n", ""},
		{"    cross join lateral %1$I.outbox_status_created_at(e) as t (created_at)\n", ""},
		{"count(*) > 0 as known, ", ""},
		{"                  when not l.known and t.created_at < (select log_dropped_until from %1$I.outbox_retention) then 'expired'\n", ""},
	} {
		if strings.Count(old, cut[0]) != 1 {
			t.Fatalf("%s has not one %q", file, cut[0])
		}
		old = strings.ReplaceAll(old, cut[0], cut[1])
	}
	from, to := strings.Index(old, "             coalesce(bool_or(status = 'discarded'"), strings.Index(old, "             max(completed_at) filter (where status <> 'failed') as settled_at")
	old = old[:from] + old[to:]
	from, to = strings.Index(old, "    -- One row: how far the log was dropped"), strings.Index(old, "    -- Which of these files have been applied.")
	old = old[:from] + old[to:]
	lines := slices.DeleteFunc(strings.Split(old, "\n"), func(line string) bool {
		line = strings.TrimSpace(line)
		for _, column := range []string{"reason        text", "walked        bigint", "finished_at   ", "database_oid  ", "database_name  ", "source_hosts  "} {
			if strings.HasPrefix(line, column) {
				return true
			}
		}
		return strings.HasPrefix(line, "member  ") || strings.HasPrefix(line, "state             jsonb")
	})
	path := filepath.Join(t.TempDir(), "first.sql")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An upgraded ledger is the same as a new one, whichever way it was upgraded, and has lost nothing.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	o := migrations.Options{Schema: "the \"ledger"}
	schema := pgx.Identifier{o.Schema}.Sanitize()
	fresh := pgtest.Unmigrated(t)
	apply(t, fresh.DSN, o)
	want := dump(t, fresh.DSN)
	first := firstVersion(t)
	for name, upgrade := range map[string]func(t *testing.T, dsn string){
		"init": func(t *testing.T, dsn string) {
			pending, err := migrations.Pending(ctx, dsn, o)
			if diff := cmp.Diff(all(t)[1:], pending); diff != "" || err != nil {
				t.Errorf("pending: %v %s", err, diff)
			}
			apply(t, dsn, o)
		},
		"psql": func(t *testing.T, dsn string) {
			for _, path := range all(t)[1:] {
				psql(t, dsn, path, "set outbox.schema = 'the \"ledger'")
			}
		},
		"psql, all":       func(t *testing.T, dsn string) { psqlAll(t, dsn, schema, all(t)...) },
		"psql, backwards": func(t *testing.T, dsn string) { psqlAll(t, dsn, schema, backwards(t)...) },
		"the last, then init": func(t *testing.T, dsn string) {
			psqlAll(t, dsn, schema, backwards(t)[0])
			apply(t, dsn, o)
		},
		"psql, then init": func(t *testing.T, dsn string) { psqlAll(t, dsn, schema, file); apply(t, dsn, o) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := pgtest.Unmigrated(t)
			exec1(t, d, "create schema "+schema)
			psql(t, d.DSN, first, "set search_path = "+schema)
			insert := "insert into " + schema + ".outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch"
			exec1(t, d, insert+") values (1, 1, 'delivered', now(), '0/1', 0, 1)")
			if have := dump(t, d.DSN); strings.Contains(have, "member ") || strings.Contains(have, "state jsonb") || strings.Contains(have, "given_up") || strings.Contains(have, "retention") {
				t.Fatal("the first version has what only later ones have")
			}
			for range 2 {
				upgrade(t, d.DSN)
				if name == "init" {
					break // the second time nothing is pending
				}
			}
			if diff := cmp.Diff(want, dump(t, d.DSN)); diff != "" {
				t.Errorf("an upgraded ledger differs from a new one (-new +upgraded):\n%s", diff)
			}
			if pending, err := migrations.Pending(ctx, d.DSN, o); err != nil || len(pending) > 0 {
				t.Errorf("pending: %q, %v", pending, err)
			}
			exec1(t, d, insert+", member) values (1, 1, 'delivered', now(), '0/2', 0, 1, 'kafka')")
			exec1(t, d, "select "+schema+".outbox_make_partitions('2031-01-01Z', 0)")
			exec1(t, d, insert+", member) values (1, 1, 'delivered', '2031-01-01 12:00Z', '0/3', 0, 1, 'redis')")
			var members []string
			err := d.Conn(t).QueryRow(ctx, "select array_agg(coalesce(member, 'none') order by commit_lsn) from "+schema+".outbox_delivery_log").Scan(&members)
			if diff := cmp.Diff([]string{"none", "kafka", "redis"}, members); diff != "" || err != nil {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

func psqlAll(t *testing.T, dsn, schema string, paths ...string) {
	t.Helper()
	for _, path := range paths {
		psql(t, dsn, path, "set search_path = "+schema)
	}
}

func backwards(t *testing.T) []string {
	t.Helper()
	names := all(t)
	slices.Reverse(names)
	return names
}

// Before there is a ledger, the later files do nothing, and no harm: applied again they make what is missing.
func TestMemberBeforeTables(t *testing.T) {
	t.Parallel()
	a, b := pgtest.Unmigrated(t), pgtest.Unmigrated(t)
	psqlAll(t, a.DSN, "public", append(backwards(t), all(t)[1:]...)...)
	psqlAll(t, b.DSN, "public", all(t)...)
	if diff := cmp.Diff(dump(t, b.DSN), dump(t, a.DSN)); diff != "" {
		t.Errorf("the order matters (-right order +other order):\n%s", diff)
	}
	if pending, err := migrations.Pending(context.Background(), a.DSN, migrations.Options{}); err != nil || len(pending) > 0 {
		t.Errorf("pending: %q, %v", pending, err)
	}
}

// The later files trust as few roles as the first one.
func TestUpgradeAmongStrangers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, test := range map[string]struct {
		before []string
		want   string
	}{
		"sinks":           {[]string{"alter table outbox_processors owner to %s"}, "public.outbox_processors belongs to role %s, who could run code"},
		"status view":     {[]string{"alter view event_outbox_status owner to %s"}, "public.event_outbox_status belongs to role %s, who could run code"},
		"outbox":          {[]string{"alter table event_outbox owner to %s"}, "public.event_outbox belongs to role %s, who could run code"},
		"status function": {[]string{"alter function outbox_status_tenant_id owner to %s"}, "function public.outbox_status_tenant_id(public.event_outbox) belongs to role %s, who could run code"},
		"retention":       {[]string{"create table outbox_retention (id int)", "alter table outbox_retention owner to %s"}, "public.outbox_retention belongs to role %s, who could run code"},
		"other retention": {[]string{"create table outbox_retention (id int)"}, "schema public has an outbox_retention that is not ours"},
		"drops": {
			[]string{"create function outbox_drop_log_partitions(timestamptz, boolean) returns int language sql as 'select 1'", "alter function outbox_drop_log_partitions owner to %s"},
			"function public.outbox_drop_log_partitions(timestamp with time zone,boolean) belongs to role %s, who could run code",
		},
		"sinks are a view": {[]string{"alter table outbox_processors rename to others", "create view outbox_processors as select 1 as id"}, "schema public has an outbox_processors that is not ours"},
		"other state":      {[]string{"alter table outbox_processors add column state text"}, "outbox_processors.state is of type text, and ours is jsonb"},
		"log":              {[]string{"alter table outbox_delivery_log owner to %s"}, "public.outbox_delivery_log belongs to role %s, who could run code"},
		"versions":         {[]string{"alter table outbox_migrations owner to %s"}, "public.outbox_migrations belongs to role %s, who could run code"},
		"view":             {[]string{"drop table outbox_migrations", "create view outbox_migrations as select 4 as version_id"}, "schema public has an outbox_delivery_log that is not ours"},
		"other type":       {[]string{"alter table outbox_delivery_log add column member int"}, "outbox_delivery_log.member is of type integer, and ours is text"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := pgtest.Unmigrated(t)
			role, _ := intruder(t, d)
			psql(t, d.DSN, firstVersion(t))
			for _, sql := range test.before {
				exec1(t, d, strings.ReplaceAll(sql, "%s", role))
			}
			before := dump(t, d.DSN)
			path := memberFile
			switch {
			case strings.Contains(test.want, "processors"):
				path = stateFile
			case slices.Contains([]string{"status view", "outbox", "status function", "retention", "other retention", "drops"}, name):
				path = retainFile
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.Conn(t).Exec(ctx, string(text))
			if want := strings.ReplaceAll(test.want, "%s", role); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if after := dump(t, d.DSN); after != before {
				t.Errorf("a refusal changed something:\n%s", cmp.Diff(before, after))
			}
		})
	}
}

// Nobody waits for ever behind somebody who reads the log.
func TestUpgradeWaitsForReaders(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.Unmigrated(t)
	psql(t, d.DSN, firstVersion(t))
	reader := d.Conn(t)
	for _, sql := range []string{"begin", "select from outbox_delivery_log"} {
		if _, err := reader.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(memberFile)
	if err != nil {
		t.Fatal(err)
	}
	conn := d.Conn(t)
	if _, err := conn.Exec(ctx, "set lock_timeout = '200ms'"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, string(text)); err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Errorf("%v, want a lock timeout", err)
	}
	if _, err := reader.Exec(ctx, "rollback"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, string(text)); err != nil {
		t.Error(err)
	}
	var patience string
	if err := conn.QueryRow(ctx, "show lock_timeout").Scan(&patience); err != nil || patience != "200ms" {
		t.Errorf("lock_timeout is %s afterwards, %v", patience, err)
	}
}

// A view that only has the name of ours stays as it is, beside a mapped outbox.
func TestUpgradeLeavesOtherViews(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	apply(t, d.DSN, migrations.Options{Mapped: true})
	exec1(t, d, "create view event_outbox_status as select 1 as mine")
	psql(t, d.DSN, stateFile)
	psql(t, d.DSN, retainFile)
	exec1(t, d, "select mine from event_outbox_status")
}
