package ledger_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Of the same table and the same ledger a MappedOutbox says what the view event_outbox_status says, whatever became of the events.
func TestMappedOutboxEqualsTheView(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec("insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'c', 'one', 'stdout'), (2, 'c', 'two', 'stdout')")
	// Each event has at sink 1 one history, and at sink 2 another: all pairs, before and behind the prefix (0/64).
	histories := []string{"", "delivered", "failed", "failed failed delivered", "failed dead", "dead discarded", "dead discarded delivered", "discarded", "parked", "failed parked", "DEAD"}
	n := 0
	for _, lsn := range []string{"0/60", "0/70"} {
		for _, one := range histories {
			for _, two := range histories {
				n++
				id := fmt.Sprintf("00000000-0000-7000-8000-%012d", n)
				l.exec(`insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, tenant_id, created_at)
					values ($1, 'order', $2, 'made', '{}', nullif($3, ''), now() - $4::int * interval '1 s')`, id, fmt.Sprint(n), one, n/3)
				for processor, history := range map[int]string{1: one, 2: two} {
					for try, status := range strings.Fields(history) {
						switch status {
						case "parked", "DEAD":
							l.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, next_attempt_at, error_message, event)
								values ($1, $2, $3::bigint, $4, 1, lower($5), $6, now() + $3::bigint * interval '1 min', $7, '{}')`, processor, lsn, n, id, status, try+1, fmt.Sprintf("row of %d", processor))
						default:
							l.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, error_message, commit_lsn, tx_index, epoch)
								values ($1, $2, $3::bigint, $4, now() + $3::bigint * interval '1 s', nullif($5, ''), $6, $7, 3)`, id, processor, try+1, status,
								map[bool]string{true: "", false: fmt.Sprintf("try %d of %d", try+1, processor)}[status == "delivered"], lsn, n)
						}
					}
				}
			}
		}
	}
	// More than a third of the events are older than what is left of the log. One that the ledger knows nothing of is expired, if it is among them.
	l.exec("insert into outbox_retention (id, log_dropped_until) select 1, percentile_disc(0.6) within group (order by created_at) from event_outbox on conflict (id) do update set log_dropped_until = excluded.log_dropped_until")
	ctx := pgtest.Context(t)
	client, err := ledger.NewClient(ctx, l.db.Conn(t), "public", "c")
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := client.OpenOutbox(ctx, ledger.OutboxTable{
		Schema: "public", Name: "event_outbox", ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", EventType: "event_type",
		TenantID: "tenant_id", CreatedAt: "created_at", Patience: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := client.ReadEvents(ctx, ledger.EventQuery{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	statuses := map[string]int{}
	for _, e := range all {
		statuses[e.Status]++
	}
	if len(all) != n || len(statuses) != 6 || statuses["expired"] != 1 {
		t.Fatalf("%d events of %d, %v: the view does not have each status", len(all), n, statuses)
	}
	middle := all[n/2]
	for name, q := range map[string]ledger.EventQuery{
		"all":       {Limit: 1000},
		"dead":      {Status: "dead", Limit: 1000},
		"parked":    {Status: "parked", Limit: 1000},
		"pending":   {Status: "pending", Limit: 10},
		"delivered": {Status: "delivered", Limit: 1000},
		"discarded": {Status: "discarded", Limit: 1000},
		"expired":   {Status: "expired", Limit: 1000},
		"times":     {Since: all[n-20].CreatedAt, Until: all[20].CreatedAt, Limit: 1000},
		"next page": {Before: middle.CreatedAt, BeforeID: middle.ID, Limit: 7},
		"ids":       {IDs: []string{all[5].ID, all[3].ID, "00000000-0000-0000-0000-000000000000"}, Limit: 10},
	} {
		want, err := client.ReadEvents(ctx, q)
		if err != nil || len(want) == 0 {
			t.Fatal(name, len(want), err)
		}
		if name == "ids" && want[0].ID < want[1].ID {
			want[0], want[1] = want[1], want[0]
		}
		got, err := mapped.ReadEvents(ctx, q)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	one, err := mapped.ReadEvent(ctx, middle.ID)
	if err != nil || one == nil || cmp.Diff(middle, *one) != "" {
		t.Errorf("%+v, %v, want %+v", one, err, middle)
	}
}

// A table may have an id of any type, and any name. What the ledger says of an event is found by the id as the stream says it, which for
// char(8) has its blanks.
func TestMappedOutboxOfAnyID(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		setUp []string
		typ   string
		ids   [3]string // of rows of the table, in the order of their ids; the first was delivered, the last is parked
	}{
		"smallint":  {typ: "smallint", ids: [3]string{"-9", "10", "2000"}},
		"bigint":    {typ: "bigint", ids: [3]string{"9", "10", "9223372036854775807"}},
		"text":      {typ: "text", ids: [3]string{"'", "a,b", "ledger.outbox_parked"}},
		"varchar":   {typ: "varchar(40)", ids: [3]string{"10", "9", "x"}},
		"char":      {typ: "char(8)", ids: [3]string{"a       ", "b       ", "c       "}},
		"uuid":      {typ: "uuid", ids: [3]string{"00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002", "00000000-0000-7000-8000-000000000003"}},
		"numeric":   {typ: "numeric", ids: [3]string{"1.50", "12", "2"}},
		"domain":    {setUp: []string{"create domain short as varchar(40)"}, typ: "short", ids: [3]string{"t1", "t2", "t3"}},
		"enum":      {setUp: []string{"create type color as enum ('red', 'blue', 'green')"}, typ: "color", ids: [3]string{"blue", "green", "red"}},
		"json":      {typ: "json", ids: [3]string{`"a"`, `"b"`, `"c"`}},
		"timestamp": {typ: "timestamptz", ids: [3]string{"2026-01-01 00:00:00+00", "2026-01-02 00:00:00+00", "2026-01-03 00:00:00+00"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			for _, sql := range append(tc.setUp,
				"drop table event_outbox cascade", "create schema \"My.Shop\"",
				`create table "My.Shop"."ledger.outbox_of ""us""" ("Id" `+tc.typ+`, "ledger.outbox_parked" text, "Agg" int, "select" text)`,
				"insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'c', 'one', 'stdout')",
				"alter table outbox_parked alter event_id type text", "alter table outbox_delivery_log alter event_id type text") {
				l.exec(sql)
			}
			for i, id := range tc.ids {
				l.exec(`insert into "My.Shop"."ledger.outbox_of ""us""" values ($1::text::`+tc.typ+`, 'order', $2, 'made')`, id, i)
			}
			l.exec(`insert into "My.Shop"."ledger.outbox_of ""us""" ("Agg") values (9)`) // without an id, which nothing can be known of
			l.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch) values ($1, 1, 1, 'delivered', now(), '0/1', 0, 3)`, tc.ids[0])
			l.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, event) values (1, '0/2', 0, $1, 1, 'parked', 3, '{}')`, tc.ids[2])
			ctx := pgtest.Context(t)
			conn := l.db.Conn(t)
			if _, err := conn.Exec(ctx, "set search_path = pg_catalog, pg_temp; set TimeZone = 'UTC'"); err != nil {
				t.Fatal(err)
			}
			client, err := ledger.NewClient(ctx, conn, "public", "c")
			if err != nil {
				t.Fatal(err)
			}
			mapped, err := client.OpenOutbox(ctx, ledger.OutboxTable{
				Schema: "My.Shop", Name: `ledger.outbox_of "us"`, ID: "Id", AggregateType: "ledger.outbox_parked", AggregateID: "Agg", EventType: "select", Patience: time.Minute,
			})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			q := ledger.EventQuery{Limit: 1}
			for len(got) < 5 {
				page, err := mapped.ReadEvents(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					break
				}
				e := page[0]
				got = append(got, fmt.Sprint(e.ID, "|", e.Status, "|", e.Retries, "|", e.AggregateType, "/", e.AggregateID, "|", e.EventType, "|", e.TenantID, "|", e.CreatedAt.IsZero()))
				q.BeforeID = e.ID
			}
			want := []string{
				tc.ids[2] + "|parked|2|order/2|made||true", tc.ids[1] + "|pending|0|order/1|made||true", tc.ids[0] + "|delivered|0|order/0|made||true",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			for _, id := range []string{"no such id", "00042", "99999999999999999999", ""} {
				if e, err := mapped.ReadEvent(ctx, id); tc.typ != "uuid" && (e != nil || err != nil) {
					t.Errorf("id %q: %+v, %v", id, e, err)
				}
			}
			if e, err := mapped.ReadEvent(ctx, tc.ids[1]); err != nil || e == nil || e.ID != tc.ids[1] {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
}

// A page is read out of an index on the time, or out of that on the id if the table has no times. Without an index the read ends in time.
func TestMappedOutboxIsReadInBounds(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec(`create table tasks (id bigint primary key, kind text not null default 'order', agg text not null default '1', at timestamp not null)`)
	l.exec(`insert into tasks (id, at) select n, now() at time zone 'utc' - n * interval '1 s' from generate_series(1, 50000) n`)
	l.exec("drop view event_outbox_status")
	l.exec("alter table outbox_parked alter event_id type text")
	l.exec("alter table outbox_delivery_log alter event_id type text")
	ctx := pgtest.Context(t)
	config, err := pgx.ParseConfig(l.db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	var plans strings.Builder
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { plans.WriteString(n.Message) }
	// A table's patience bounds whatever its connection does from then on, so one that is short has a connection of its own.
	connect := func() (*pgx.Conn, *ledger.Client) {
		t.Helper()
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.Background()) })
		if err := ledger.SetUpCommand(ctx, conn); err != nil {
			t.Fatal(err)
		}
		client, err := ledger.NewClient(ctx, conn, "public", "c")
		if err != nil {
			t.Fatal(err)
		}
		return conn, client
	}
	open := func(client *ledger.Client, createdAt string, patience time.Duration) *ledger.MappedOutbox {
		t.Helper()
		m, err := client.OpenOutbox(ctx, ledger.OutboxTable{
			Schema: "public", Name: "tasks", ID: "id", AggregateType: "kind", AggregateID: "agg", CreatedAt: createdAt, Patience: patience,
		})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	conn, client := connect()
	hour := ledger.EventQuery{Status: "pending", Since: time.Now().Add(-time.Hour), Limit: 10}
	if all, err := open(client, "at", time.Minute).ReadEvents(ctx, hour); err != nil || len(all) != 10 || all[0].ID != "1" || all[9].ID != "10" {
		t.Errorf("%+v, %v", all, err)
	}
	for createdAt, want := range map[string]string{
		"at": `read public.tasks: not done after 1ms: ERROR: canceling statement due to statement timeout (SQLSTATE 57014); name the events (--id), take a shorter time (--since, --until), or make an index on ("at")`,
		"":   `read public.tasks: not done after 1ms: ERROR: canceling statement due to statement timeout (SQLSTATE 57014); name the events (--id), or list those that are parked, dead, failed or discarded`,
	} {
		_, impatient := connect()
		_, err := open(impatient, createdAt, time.Millisecond).ReadEvents(ctx, ledger.EventQuery{Status: "dead", Limit: 10})
		if err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	l.exec("create index tasks_time on tasks (at)")
	l.exec("vacuum analyze tasks")
	if _, err := conn.Exec(ctx, "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set client_min_messages = log"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		createdAt, index string
		q                ledger.EventQuery
	}{
		{"at", "tasks_time", hour},
		{"at", "tasks_pkey", ledger.EventQuery{IDs: []string{"5", "6"}, Limit: 10}},
		{"", "tasks_pkey", ledger.EventQuery{Limit: 10}},
		{"", "tasks_pkey", ledger.EventQuery{BeforeID: "500", Limit: 10}},
	} {
		m := open(client, tc.createdAt, time.Minute)
		plans.Reset()
		if _, err := m.ReadEvents(ctx, tc.q); err != nil {
			t.Fatal(err)
		}
		plan := plans.String()
		if read := regexp.MustCompile(`using ` + tc.index + ` on tasks t .*\(actual rows=(\d+)`).FindStringSubmatch(plan); read == nil || len(read[1]) > 2 {
			t.Errorf("%+v: the page is not read out of %s:\n%s", tc.q, tc.index, plan)
		}
	}
}
