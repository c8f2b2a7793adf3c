package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

var sqlBlock = regexp.MustCompile("(?s)```sql\n(.*?)```")

// TestRetentionPage runs every statement of docs/retention.md.
func TestRetentionPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "retention.md"))
	if err != nil {
		t.Fatal(err)
	}
	conn := pgtest.New(t).Conn(t)
	role, _ := pgtest.NewLogin(t, conn)
	pgtest.Exec(t, conn, "create schema shop", "create table shop.orders_outbox (id bigint primary key, created_at timestamptz)",
		`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'order', name, 'order.made', '{}', now() - age from (values ('logged', interval '8 days'), ('parked', interval '8 days'),
				('lost', interval '9 days'), ('lost too', interval '8 days'), ('young', interval '1 day')) as rows (name, age)`,
		`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			select id, 1, 1, 'delivered', now(), '0/1', 0, 1 from event_outbox where aggregate_id = 'logged'`,
		`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event)
			select 1, '0/2', 0, id, 1, 'parked', '{}' from event_outbox where aggregate_id = 'parked'`)

	var looked, deleted bool
	for _, block := range sqlBlock.FindAllStringSubmatch(string(page), -1) {
		for statement := range strings.SplitSeq(strings.TrimSpace(block[1]), ";") {
			// The login of the page has a name of its own here: roles belong to the whole server.
			statement = regexp.MustCompile(`to outbox_cdc$`).ReplaceAllString(strings.TrimSpace(statement), "to "+role)
			rows, err := conn.Query(pgtest.Context(t), statement)
			if err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
			got, err := pgx.CollectRows(rows, pgx.RowToMap)
			if err != nil {
				t.Errorf("%s: %v", statement, err)
			}
			switch {
			case strings.HasPrefix(statement, "select id, created_at"):
				looked = true
				if len(got) != 2 {
					t.Errorf("%d rows are unaccounted, want 2: %v", len(got), got)
				}
			case strings.HasPrefix(statement, "delete"):
				deleted = true
				if n := rows.CommandTag().RowsAffected(); n != 2 {
					t.Errorf("%d rows were deleted, want 2", n)
				}
			}
		}
	}
	if !looked || !deleted {
		t.Error("the statements about rows that the ledger does not know are no longer where they are looked for")
	}
	if left := pgtest.Text(t, conn, "select string_agg(aggregate_id, ', ' order by aggregate_id) from event_outbox"); left != "logged, parked, young" {
		t.Errorf("left are %s", left)
	}
	for _, privilege := range []string{
		"has_table_privilege($1, 'event_outbox', 'delete')", "has_table_privilege($1, 'outbox_retention', 'insert, select, update')",
		"has_function_privilege($1, 'outbox_drop_log_partitions(timestamptz, boolean)', 'execute')",
		"has_function_privilege($1, 'outbox_drop_event_day(oid, bigint, bigint)', 'execute')",
	} {
		if has := pgtest.Text(t, conn, "select ("+privilege+")::text", role); has != "true" {
			t.Errorf("%s is %s after the grants", privilege, has)
		}
	}
}

var missedBlock = regexp.MustCompile(`(?s)\n( +create table outbox_missed .*?);`)

// When a slot was lost, what is sent once more are events that some sink was not given: not those whose part of the log was dropped.
func TestMissedEventsAndADroppedLog(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "slot.md"))
	if err != nil {
		t.Fatal(err)
	}
	statement := missedBlock.FindStringSubmatch(string(page))
	if statement == nil {
		t.Fatal("the statement is no longer where it is looked for")
	}
	conn := pgtest.New(t).Conn(t)
	pgtest.Exec(t, conn, "insert into outbox_processors (connector, processor_name, processor_type) values ('c', 'a', 'kafka'), ('c', 'b', 'kafka')",
		`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'order', name, 'order.made', '{}', now() - age from (values ('dropped', interval '9 days'), ('half, late', interval '9 days'),
				('half', interval '1 day'), ('both', interval '1 day'), ('none', interval '1 day')) as rows (name, age)`,
		`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			select o.id, p.id, 1, 'delivered', now(), '0/1', 0, 1 from event_outbox o join outbox_processors p on aggregate_id = 'both' or aggregate_id like 'half%' and p.processor_name = 'a'`)
	for dropped, want := range map[string]string{"null": "dropped, half, half, late, none", "now() - interval '8 days'": "half, half, late, none"} {
		pgtest.Exec(t, conn, "update outbox_retention set log_dropped_until = "+dropped, "drop table if exists outbox_missed", statement[1])
		if got := pgtest.Text(t, conn, "select string_agg(aggregate_id, ', ' order by aggregate_id) from outbox_missed"); got != want {
			t.Errorf("log_dropped_until is %s: %s are missed, want %s", dropped, got, want)
		}
	}
}
