package migrations_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// Only the owner calls the function that drops partitions. Whoever reads the log of an older version may read how far it was dropped.
func TestRetentionRights(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.Unmigrated(t)
	role, stranger := intruder(t, d)
	psql(t, d.DSN, firstVersion(t))
	exec1(t, d, "grant select, insert on outbox_delivery_log to "+role)
	apply(t, d.DSN, migrations.Options{})
	if _, err := stranger.Exec(ctx, "select * from public.outbox_retention"); err != nil {
		t.Error(err)
	}
	for _, sql := range []string{
		"select public.outbox_drop_log_partitions(now(), true)", "update public.outbox_retention set report = '{}'", "insert into public.outbox_retention (id) values (1)",
	} {
		_, err := stranger.Exec(ctx, sql)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{"select outbox_drop_log_partitions(null, true)", "select outbox_drop_log_partitions(now(), null)"} {
		if _, err := d.Conn(t).Exec(ctx, sql); err == nil || !strings.Contains(err.Error(), "must not be null") {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// A login that owns nothing drops a partition, whoever has made something in the schema.
func TestDropFunctionRunsAsItsOwner(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	role, thief := intruder(t, d)
	exec1(t, d, "grant execute on function outbox_drop_log_partitions to "+role)
	exec1(t, d, "select outbox_make_partitions('2020-01-01 12:00Z', 0)")
	for _, sql := range []string{
		`create function public.format(text, text) returns text language plpgsql as $$ begin raise 'ran as %', current_user; end $$`,
		`create function public.pg_total_relation_size(oid) returns bigint language plpgsql as $$ begin raise 'ran as %', current_user; end $$`,
		`create temporary table outbox_delivery_log (mine int)`, `create temporary table outbox_checkpoints (mine int)`,
	} {
		if _, err := thief.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	var outcome string
	if err := thief.QueryRow(ctx, "select outcome from outbox_drop_log_partitions('infinity', false)").Scan(&outcome); err != nil || outcome != "dropped" {
		t.Errorf("%s, %v", outcome, err)
	}
}

// The outbox that init makes is vacuumed more often, unless somebody has decided otherwise. A table of the user's own stays as it is.
func TestOutboxIsVacuumed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before  string
		options migrations.Options
		want    string
	}{
		"ours":        {"", migrations.Options{}, "autovacuum_vacuum_scale_factor=0.05 toast.autovacuum_vacuum_scale_factor=0.05"},
		"decided":     {"alter table event_outbox set (autovacuum_vacuum_scale_factor = 0.3, fillfactor = 90)", migrations.Options{}, "autovacuum_vacuum_scale_factor=0.3 fillfactor=90 toast.autovacuum_vacuum_scale_factor=0.05"},
		"not ours":    {"", migrations.Options{Mapped: true}, ""},
		"partitioned": {"drop view event_outbox_status; drop table event_outbox cascade; create table event_outbox (id int, created_at timestamptz) partition by range (created_at)", migrations.Options{Mapped: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := pgtest.Unmigrated(t)
			psql(t, d.DSN, firstVersion(t))
			if tc.before != "" {
				exec1(t, d, tc.before)
			}
			apply(t, d.DSN, tc.options)
			var got string
			err := d.Conn(t).QueryRow(context.Background(), `select coalesce(string_agg(o, ' ' order by o), '') from (
				select unnest(reloptions) from pg_class where oid = 'event_outbox'::regclass
				union all select 'toast.' || unnest(t.reloptions) from pg_class t join pg_class c on c.reltoastrelid = t.oid where c.oid = 'event_outbox'::regclass) as options (o)`).Scan(&got)
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

// An event trigger of an administrator's that lets nobody drop a table is a reason to keep the partition, and no error.
func TestEventTriggerAgainstDrops(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	conn := d.Conn(t)
	for _, sql := range []string{
		"select outbox_make_partitions('2020-01-01 12:00Z', 0)",
		"create function no_drops() returns event_trigger language plpgsql as $$ begin raise exception 'nobody drops tables here'; end $$",
		"create event trigger no_drops on sql_drop execute function no_drops()",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	var outcome, reason string
	err := conn.QueryRow(ctx, "select outcome, reason from outbox_drop_log_partitions(now(), false)").Scan(&outcome, &reason)
	if err != nil || outcome != "refused" || !strings.Contains(reason, "nobody drops tables here") {
		t.Errorf("%s: %s, %v", outcome, reason, err)
	}
	if _, err := conn.Exec(ctx, "select from outbox_delivery_log_20200101"); err != nil {
		t.Error(err)
	}
}
