package migrations_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// A day's partition is known by its bounds. What another role has made under its name beforehand is left alone.
func TestPartitionsMadeBeforehand(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	role, thief := intruder(t, d)
	for _, sql := range []string{
		"create function loot.ran() returns trigger language plpgsql as 'begin raise ''ran as %'', current_user; end'",
		"create table public.outbox_delivery_log_20310101 (like public.outbox_delivery_log)",
		"create trigger t before insert on public.outbox_delivery_log_20310101 for each row execute function loot.ran()",
		"create view public.outbox_delivery_log_20310102 as select 1 as one",
		"create type public.outbox_delivery_log_20310103 as enum ()",
		"create sequence public.outbox_delivery_log_20310104",
	} {
		if sql == "create table public.outbox_delivery_log_20310101 (like public.outbox_delivery_log)" {
			exec1(t, d, "grant select on public.outbox_delivery_log to "+role)
		}
		if _, err := thief.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	conn := d.Conn(t)
	for _, want := range []int{5, 0} {
		var made int
		if err := conn.QueryRow(ctx, "select outbox_make_partitions('2031-01-01 12:00Z', 4)").Scan(&made); err != nil || made != want {
			t.Fatalf("%d partitions made, %v; want %d", made, err, want)
		}
	}
	for day := 1; day <= 5; day++ {
		var partition, owner string
		err := conn.QueryRow(ctx, `with new as (insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
				values (1, 1, 'delivered', $1::text::timestamptz, '0/1', 0, 1) returning tableoid as made)
			select relname::text, pg_get_userbyid(relowner)::text from new join pg_class c on c.oid = made`, fmt.Sprintf("2031-01-0%d 23:59:59.9Z", day)).Scan(&partition, &owner)
		name := fmt.Sprintf("outbox_delivery_log_2031010%d", day)
		if err != nil || owner == role || !strings.HasPrefix(partition, name) || (partition == name) != (day == 5) {
			t.Errorf("day %d is in %s of %s, %v", day, partition, owner, err)
		}
	}
}

// The view does not keep anybody from changing the types of the outbox's columns. Its own columns keep their types.
func TestColumnTypesCanChange(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	conn := pgtest.New(t).Conn(t)
	columns := func() (types string) {
		t.Helper()
		err := conn.QueryRow(ctx, `select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum) from pg_attribute
			where attrelid = 'event_outbox_status'::regclass`).Scan(&types)
		if err != nil {
			t.Fatal(err)
		}
		return types
	}
	before := columns()
	insert := "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, tenant_id) values ('Order', '%s', 'created', '%s', '%[1]s')"
	run := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	run(fmt.Sprintf(insert, "17", "{}"))
	for _, to := range []string{
		"payload type jsonb using payload::jsonb", "payload type text using payload::text", "payload type bytea using convert_to(payload, 'UTF8')",
		"aggregate_id type varchar(200)", "aggregate_id type bigint using aggregate_id::bigint", "aggregate_id type uuid using gen_random_uuid()",
		"aggregate_id type text", "aggregate_type type varchar", "event_type type varchar(99)", "event_version type bigint", "metadata type json",
		"tenant_id type varchar(99)", "created_at type timestamptz(3)", "created_at type timestamp", "max_retries type smallint",
		"correlation_id type varchar", "causation_id type uuid using causation_id::uuid", "id type text", "id type uuid using id::uuid",
	} {
		run("alter table event_outbox alter column " + to)
		var id, aggregate, status string
		err := conn.QueryRow(ctx, "select s.id::text, s.aggregate_id, s.status from event_outbox_status s join event_outbox e on e.id::text = s.id::text and e.aggregate_id::text = s.aggregate_id").
			Scan(&id, &aggregate, &status)
		if err != nil || status != "pending" {
			t.Errorf("after %s: %s, %v", to, status, err)
		}
		if after := columns(); after != before {
			t.Errorf("after %s the view has %s\nbefore: %s", to, after, before)
		}
	}
}

// explain gives the plan of a query on the tables as they are.
func explain(t *testing.T, conn *pgx.Conn, query string) string {
	t.Helper()
	rows, err := conn.Query(context.Background(), "explain (costs off, verbose) "+query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// What looks for one event, one aggregate, one tenant or the newest events finds them by an index, through the view as well.
func TestIndexesAreUsed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, ids := range []string{"uuid", "text"} {
		t.Run(ids, func(t *testing.T) {
			t.Parallel()
			d := pgtest.Unmigrated(t)
			apply(t, d.DSN, migrations.Options{EventIDType: ids})
			conn := d.Conn(t)
			for _, sql := range []string{
				"alter table event_outbox alter column id type " + ids,
				`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, tenant_id)
					select 'Order', 'order-' || n % 5000, 'created', to_json(repeat('x', 500)), 'tenant-' || n / 2000 from generate_series(1, 20000) n`,
				`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
					select id, 1, 1, 'delivered', now(), '0/1', 0, 1 from event_outbox`,
				`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event)
					select 1, '0/1', row_number() over (), id, 1, 'parked', '{}' from event_outbox`,
				"vacuum analyze event_outbox", "vacuum analyze outbox_delivery_log", "vacuum analyze outbox_parked",
			} {
				if _, err := conn.Exec(ctx, sql); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			const id = "'0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f'"
			type use struct{ query, index string }
			uses := []use{
				{"select * from event_outbox_status where id = " + id, "Index Scan using event_outbox_pkey"},
				{"select * from event_outbox_status where created_at > now() - interval '1 minute' order by created_at desc, id desc limit 10", "Index Scan Backward using idx_outbox_created_at"},
				{"select * from event_outbox_status where aggregate_id = 'order-7'", "idx_outbox_aggregate"},
				{"select * from event_outbox where aggregate_type = 'Order' and aggregate_id = 'order-7'", "idx_outbox_aggregate"},
				{"select * from event_outbox where tenant_id = 'tenant-7'", "idx_outbox_tenant_id"},
				{"select * from outbox_parked where event_id = " + id, "idx_outbox_pending_events"},
				{"select * from outbox_delivery_log where event_id = " + id, "_event_id_idx"},
				{"select * from outbox_parked where event_id = any (array[" + id + "]::" + ids + "[])", "idx_outbox_pending_events"},
			}
			if ids == "uuid" {
				uses = append(uses, use{"select * from event_outbox_status where id = " + id, "idx_outbox_pending_events"},
					use{"select * from event_outbox_status where id = " + id, "_event_id_idx"})
			}
			for _, u := range uses {
				if plan := explain(t, conn, u.query); !strings.Contains(plan, u.index) {
					t.Errorf("%s is not used by: %s\n%s", u.index, u.query, plan)
				}
			}
			// The laterals of the view are given the id, not the row with its payload.
			if plan := explain(t, conn, uses[0].query); !strings.Contains(plan, "Function Call: e.id") || strings.Contains(plan, "e.*") {
				t.Errorf("the whole row is read:\n%s", plan)
			}
			// As a person's session of ours asks (connector.PlanParked): without bitmap scans.
			if _, err := conn.Exec(ctx, "set enable_seqscan = off; set enable_bitmapscan = off"); err != nil {
				t.Fatal(err)
			}
			for _, query := range []string{"select * from outbox_parked where event_id = " + id, "select * from outbox_parked where event_id = any (array[" + id + "]::" + ids + "[])"} {
				if plan := explain(t, conn, query); !strings.Contains(plan, "idx_outbox_pending_events") {
					t.Errorf("idx_outbox_pending_events is not used:\n%s", plan)
				}
			}
		})
	}
}

// No index of ours refuses a value because it is long: a btree takes 2.7 kB.
// TestEmptyAggregateType: the table refuses what would be a dead letter.
func TestEmptyAggregateType(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	apply(t, d.DSN, migrations.Options{})
	_, err := d.Conn(t).Exec(context.Background(), `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('', 'a', 't', '{}')`)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "23514" {
		t.Errorf("an empty aggregate_type: %v, want a violation of a CHECK", err)
	}
}

func TestLongValues(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.Unmigrated(t)
	apply(t, d.DSN, migrations.Options{EventIDType: "text"})
	conn := d.Conn(t)
	long := func(n int) string { // which cannot be compressed by much
		b := make([]byte, n/2)
		_, _ = rand.Read(b) // it never fails
		return hex.EncodeToString(b)
	}
	for _, n := range []int{10_000, 1_000_000} {
		_, err := conn.Exec(ctx, `insert into event_outbox (aggregate_type, aggregate_id, event_type, event_version, payload, tenant_id, correlation_id, causation_id)
			values ($1, $2, $3, 1, '{}', $4, $5, $6)`, long(n), long(n), long(n), long(n), long(n), long(n))
		if err != nil {
			t.Errorf("event_outbox, %d bytes: %v", n, err)
		}
		id := long(n)
		if _, err := conn.Exec(ctx, `insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, error_message, commit_lsn, tx_index, epoch)
			values ($1, 1, 1, 'failed', now(), $1, '0/1', 0, 1)`, id); err != nil {
			t.Errorf("outbox_delivery_log, %d bytes: %v", n, err)
		}
		if _, err := conn.Exec(ctx, `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event, error_message, next_attempt_at)
			values (1, '0/1', $2, $1, 1, 'parked', '{}', $1, now())`, id, n); err != nil {
			t.Errorf("outbox_parked, %d bytes: %v", n, err)
		}
		var found int
		err = conn.QueryRow(ctx, `select (select count(*) from outbox_delivery_log where event_id = $1) + (select count(*) from outbox_parked where event_id = $1)`, id).Scan(&found)
		if err != nil || found != 2 {
			t.Errorf("%d found, %v", found, err)
		}
	}
	for _, sql := range []string{"vacuum event_outbox", "select brin_summarize_new_values('idx_outbox_tenant_id')", "reindex table event_outbox"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if _, err := conn.Exec(ctx, `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, tenant_id) values ('a', '1', 'e', '{}', $1)`, long(10_000)); err != nil {
		t.Errorf("into a range that is summarized: %v", err)
	}
}
