package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

func TestDLQPurge(t *testing.T) {
	t.Parallel()
	conn, environ := ledger(t)
	_, err := conn.Exec(t.Context(), `update outbox_parked set parked_at = '2026-01-02T03:04:05.6Z' where status = 'dead';
		insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, parked_at, event) values
			(0, '0/3', 0, 1, 'dead', '2026-01-03T00:00:00Z', '{}'), (0, '0/4', 0, 1, 'dead', now(), '{}')`)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ line, stdout string }{
		{"dlq purge --older-than 36500d --yes", "no dead letter is older than 36500d; 3 are younger\n"},
		{"dlq purge --older-than 1d12h --sink none --dry-run", "would delete 1 event (1 of none); the oldest died at 2026-01-03 00:00:00 UTC\n1 is younger than 1d12h\n"},
		{"dlq purge --older-than 1d --dry-run", "would delete 2 events (1 of none, 1 of partner); the oldest died at 2026-01-02 03:04:05 UTC\n" +
			"1 of these: the log of the day when they died is deleted already, so they count as dead since they were parked\n1 is younger than 1d\n"},
		{"dlq purge --older-than 1d --sink none --reason old --yes", "deleted: 1 event (1 of none)\n1 is younger than 1d\n"},
	} {
		if got := command(t, environ, strings.Fields(c.line)...); got.code != 0 || got.stdout != c.stdout {
			t.Errorf("%s: code %d, stderr %s, -want +got:\n%s", c.line, got.code, got.stderr, cmp.Diff(c.stdout, got.stdout))
		}
	}
	var result admin.PurgeResult
	got := command(t, environ, "dlq", "purge", "--older-than", "1d", "--yes", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || result.Deleted != 1 || result.Younger != 1 || result.ByParkedAt != 1 {
		t.Errorf("JSON: %v\n%s%s", err, got.stdout, got.stderr)
	}
	var log string
	if err := conn.QueryRow(t.Context(), "select string_agg(concat_ws(' ', processor_id, status, error_message), ', ' order by id) from outbox_delivery_log").Scan(&log); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(log, "0 discarded discarded by ") || !strings.Contains(log, ": old, 1 discarded discarded by ") {
		t.Errorf("log: %s", log)
	}
	if got := command(t, environ, "dlq", "purge", "--older-than", "1d", "--sink", "x", "--yes"); got.code != 1 || !strings.Contains(got.stderr, `no sink "x"`) {
		t.Errorf("an unknown sink: code %d, %s", got.code, got.stderr)
	}
}

func TestPurgeQuestion(t *testing.T) {
	t.Parallel()
	oldest := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	r := admin.PurgeResult{Matched: 3, Oldest: &oldest, Sinks: []admin.SinkRows{{Sink: "none", Rows: 1}, {Sink: "partner", Rows: 2}}}
	const want = "Delete 3 events (1 of none, 2 of partner) of shop at db:5432 for good, of which the oldest died at 2026-01-02 02:04:05 UTC?"
	if got := purgeQuestion(r, " of shop at db:5432"); got != want {
		t.Errorf("asked: %s", got)
	}
}
