package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	ledgerpkg "github.com/pyairtable-compose/outbox-cdc/ledger"
)

func TestUsageErrorsOfCleanup(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"cleanup":                    "write --once to delete now what the retention allows, or --dry-run to see what that is",
		"cleanup --once --dry-run":   "--once and --dry-run exclude each other",
		"cleanup --once now":         `outbox-cdc cleanup takes no arguments, and got ["now"]; see outbox-cdc cleanup --help`,
		"cleanup --once -o table":    `no output format "table"; write text or json`,
		"cleanup --once --older 1d":  "unknown flag: --older; see outbox-cdc cleanup --help",
		"cleanup --dry-run=perhaps":  `invalid argument "perhaps" for "--dry-run" flag: strconv.ParseBool: parsing "perhaps": invalid syntax; see outbox-cdc cleanup --help`,
		"cleanup --once=false":       "write --once to delete now what the retention allows, or --dry-run to see what that is",
		"clean-up":                   `outbox-cdc has no command "clean-up"; did you mean cleanup?`,
		"cleanup --dry-run --verbos": "unknown flag: --verbos; see outbox-cdc cleanup --help",
	} {
		got := command(t, []string{"DATABASE_URL=postgres://127.0.0.1:1/nowhere"}, strings.Fields(line)...)
		if got.code != exitcode.Usage || got.stdout != "" || got.stderr != want+"\n" {
			t.Errorf("%s: code %d, stdout %q, stderr %q, want 2 and %q", line, got.code, got.stdout, got.stderr, want)
		}
	}
	if got := command(t, nil, "cleanup", "--once"); got.code != exitcode.Config {
		t.Errorf("without DATABASE_URL: code %d, %s", got.code, got.stderr)
	}
	if got := command(t, []string{"DATABASE_URL=postgres://127.0.0.1:1/nowhere"}, "cleanup", "--once"); got.code != exitcode.Unavailable || got.stdout != "" {
		t.Errorf("without PostgreSQL: code %d, %s%s", got.code, got.stdout, got.stderr)
	}
}

// Where nothing is ever deleted, cleanup says so and does not even connect.
func TestCleanupThatIsOff(t *testing.T) {
	t.Parallel()
	environ := []string{"DATABASE_URL=postgres://127.0.0.1:1/nowhere", "OUTBOX_RETENTION_OUTBOX=off", "OUTBOX_RETENTION_LEDGER=off"}
	const want = "nothing is deleted: retention.outbox and retention.ledger are off"
	for _, flag := range []string{"--once", "--dry-run"} {
		if got := command(t, environ, "cleanup", flag); got.code != 0 || got.stdout != want+"\n" || got.stderr != "" {
			t.Errorf("%s: %+v", flag, got)
		}
		var result struct{ Deletes []string }
		got := command(t, environ, "cleanup", flag, "-o", "json")
		if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || got.code != 0 || len(result.Deletes) != 1 || result.Deletes[0] != want {
			t.Errorf("%s: %v, %+v", flag, err, got)
		}
	}
}

func TestCleanup(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	conn := d.Conn(t)
	pgtest.Exec(t, conn, "select outbox_make_partitions(now() - interval '10 days', 0)", `insert into outbox_checkpoints (slot_name, state, epoch, prefix_lsn, prefix_index, confirmed_lsn) values ('outbox_cdc', 'ready', 1, '0/3', 0, '0/3')`,
		`with made as (insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
			select 'order', n::text, 'order.made', '{}', now() - interval '1 hour' from generate_series(1, 4) n returning id, aggregate_id)
		insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			select id, 1, 1, 'delivered', now() - interval '10 days', ('0/' || aggregate_id)::pg_lsn, 0, 1 from made`,
		`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', '5', 'order.made', '{}')`)
	oldDay := "outbox_delivery_log_" + pgtest.Text(t, conn, "select to_char(now() at time zone 'UTC' - interval '10 days', 'YYYYMMDD')")
	role, password := pgtest.NewLogin(t, conn)
	pgtest.Exec(t, conn, "grant usage on schema public to "+role, "grant select on all tables in schema public to "+role, "grant delete on outbox_metrics to "+role)
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	if err := os.WriteFile(file, []byte("source: {dsn: '"+d.DSN+"'}\nretention: {outbox: 30m}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const stays = "1 row of public.event_outbox is old enough and stays: not settled yet: slot outbox_cdc has settled everything up to 0/3:0, "
	limited := []string{"DATABASE_URL=" + pgtest.WithLogin(t, d.DSN, role, password), "OUTBOX_RETENTION_OUTBOX=30m"}
	got := command(t, limited, "cleanup", "--once")
	if got.code != exitcode.Privilege || !strings.Contains(got.stdout, "\n  grant delete on table public.event_outbox to "+role+";\n") {
		t.Errorf("without the right: code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	if got = command(t, limited, "cleanup", "--dry-run"); got.code != 0 || !strings.Contains(got.stdout, "\n  grant delete on table public.event_outbox to "+role+";\n") {
		t.Errorf("a dry run without the right: code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	got = command(t, nil, "cleanup", "--config", file, "--dry-run")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "would delete 3 rows of public.event_outbox older than 30m\n") || !strings.Contains(got.stdout, "\n"+stays) ||
		!strings.Contains(got.stdout, "\nwould delete no day of the delivery log older than 7d\nolder days of the delivery log stay: "+oldDay+": it says what became of rows of the outbox that stay\n") ||
		!strings.HasSuffix(got.stdout, "\nrows of public.event_outbox that are younger than 30m stay\n") {
		t.Errorf("dry run: code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	got = command(t, nil, "cleanup", "--config", file, "--once", "--verbose")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "deleted 3 rows of public.event_outbox older than 30m\n") || !strings.Contains(got.stderr, "outbox-cdc cleanup works on ") {
		t.Errorf("once: code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	var r admin.CleanupResult
	got = command(t, nil, "cleanup", "--config", file, "--once", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil || r.Outbox.Deleted != 0 || r.Outbox.Kept.Beyond != 1 || !r.Complete || r.Slot == nil || r.Slot.Slot != "outbox_cdc" {
		t.Errorf("JSON: %v\n%s%s", err, got.stdout, got.stderr)
	}
	pgtest.Exec(t, conn, "update outbox_checkpoints set prefix_lsn = '0/4', confirmed_lsn = '0/4'")
	got = command(t, nil, "cleanup", "--config", file, "--once")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "deleted 1 row of public.event_outbox older than 30m\ndeleted 1 day of the delivery log older than 7d (0 MB): "+oldDay+"\n") {
		t.Errorf("all of it is settled: code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	if n := pgtest.Text(t, conn, "select count(*)::text from event_outbox"); n != "1" {
		t.Errorf("%s rows are left", n)
	}
}

// Every reason why something stays has words.
func TestCleanupText(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Retention = config.Retention{Outbox: "7d", Ledger: "30d"}
	var r admin.CleanupResult
	r.DryRun = true
	r.Outbox = cleanup.OutboxReport{
		Deleted: 12345, More: true, Unaccounted: "one\x1b", Refused: "a foreign key",
		Kept: ledgerpkg.KeptRows{Beyond: 1, Unread: 2, Unaccounted: 3, Locked: 4, Refused: 5},
	}
	r.Log = cleanup.PartitionReport{Dropped: []string{"log_1", "log_2"}, Bytes: 5 << 20, Stays: "slot x has not settled all of it"}
	r.Metrics, r.Blocked, r.Grants = 1, "a job of outbox_backlog is unfinished", []string{"grant delete on table a to b"}
	r.Slot = &ledgerpkg.SlotPrefix{Slot: "shop", Prefix: "0/1A:3", LagBytes: 7 << 20, Exists: true}
	const want = `would delete at least 12345 rows of public.event_outbox older than 7d
this has looked at 12360 rows that are old enough, and there are more
would delete 2 days of the delivery log older than 30d (5 MB): log_1, log_2
older days of the delivery log stay: slot x has not settled all of it
would delete 1 window of outbox_metrics that ended more than 30d ago
nothing may be deleted now: a job of outbox_backlog is unfinished
the login of source.dsn lacks a right; the owner gives it by
  grant delete on table a to b;
until then: the login may not delete from the outbox, so its rows stay, and so does the log, which says what may be deleted; or do without: retention.outbox: off keeps the rows
1 row of public.event_outbox is old enough and stays: not settled yet: slot shop has settled everything up to 0/1A:3, 7 MB behind the server, and nobody streams from it
2 rows of public.event_outbox are old enough and stay: the ledger has nothing of these: the stream has not come that far, or they were written before the slot was made
3 rows of public.event_outbox are old enough and stay: unaccounted: the ledger has nothing of these, and the stream is past them, such as one�; they are never deleted by this: see docs/retention.md#unaccounted
4 rows of public.event_outbox are old enough and stay: locked by another transaction: they go next time
5 rows of public.event_outbox are old enough and stay: the database refuses to delete them: a foreign key; see docs/retention.md#refused
rows of public.event_outbox that are younger than 7d stay
`
	if diff := cmp.Diff(want, cleanupText(cfg, r)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	cfg.Retention = config.Retention{Outbox: config.AgeOff, Ledger: "7d"}
	const off = "public.event_outbox: every row stays, because retention.outbox is off\ndeleted no day of the delivery log older than 7d\n"
	if diff := cmp.Diff(off, cleanupText(cfg, admin.CleanupResult{})); diff != "" {
		t.Errorf("the outbox is off (-want +got):\n%s", diff)
	}
	cfg.Retention = config.Retention{Outbox: "0s", Ledger: config.AgeOff}
	if got := cleanupText(cfg, admin.CleanupResult{}); !strings.Contains(got, "the delivery log: every day stays, because retention.ledger is off\n") {
		t.Errorf("the log is off:\n%s", got)
	}
}
