package ledger_test

import (
	"context"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// What the keeper does once an hour: days that are missing are made. It fails only about days that come soon, and says what to do.
func TestKeepOutboxPartitions(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.Unmigrated(t)
	if err := migrations.Apply(ctx, d.DSN, migrations.Options{Partitioned: true}); err != nil {
		t.Fatal(err)
	}
	conn, other := d.Conn(t), d.Conn(t)
	exec := func(sql string) {
		t.Helper()
		pgtest.Exec(t, other, sql)
	}
	drop := func(day string) {
		exec("do $$ begin execute to_char((now() at time zone 'UTC')::date + " + day + ", '\"drop table event_outbox_\"YYYYMMDD'); end $$")
	}
	const s = ledger.Schema("public")
	check := func(what, want string, partitions string) {
		t.Helper()
		err := s.KeepOutboxPartitions(ctx, conn)
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
		if got := pgtest.Text(t, other, "select count(*)::text from pg_inherits where inhparent = 'event_outbox'::regclass"); got != partitions {
			t.Errorf("%s: %s partitions, want %s", what, got, partitions)
		}
	}
	exec("select from outbox_make_event_partitions(now() - interval '2 days', 1)")
	exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) values ('a', '1', 'e', '{}', now() - interval '2 days')")
	check("two old days, of which one has a row, the other ended less than a day ago", "", "18")
	exec("delete from event_outbox")
	check("no row is left", "", "17")
	exec("do $$ begin execute to_char((now() at time zone 'UTC')::date - 1, '\"drop table event_outbox_\"YYYYMMDD'); end $$")
	drop("1")
	drop("14")
	check("two missing", "", "16")
	drop("1")
	exec("begin")
	exec("select count(*) from event_outbox")
	check("tomorrow, and a reader", "end a transaction or statement", "15")
	exec("rollback")
	check("the reader has gone", "", "16")
	drop("9")
	exec("begin")
	exec("select count(*) from event_outbox")
	check("a day far ahead, and a reader", "", "15")
	exec("rollback")
	drop("2")
	exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) values ('a', '1', 'e', '{}', now() + interval '2 days')")
	check("rows of that day in the default partition", "", "15")
	exec("delete from event_outbox_default")
	check("they are deleted", "", "16")
	drop("3")
	exec("alter table event_outbox_default alter column payload set storage external")
	exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) select 'a', '1', 'e', to_json(repeat('x', 1800)), '2000-01-01' from generate_series(1, 20000)")
	check("a large default partition", "docs/partitions.md#large", "15")
	exec("drop table event_outbox cascade")
	if err := s.KeepOutboxPartitions(ctx, conn); err != nil {
		t.Errorf("no outbox: %v", err)
	}
}
