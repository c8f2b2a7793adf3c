package admin

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// large makes TestStatusIsFast as large as docs/status.md says: go test ./admin -run TestStatusIsFast -v -args -large
var large = flag.Bool("large", false, "10,000,000 rows of the log and 1,000,000 parked rows, and a limit for the time that status takes")

// statusLimit is how long status may take with the large ledger.
const statusLimit = 200 * time.Millisecond

// However long log and queue are, no statement of status reads all of either, so the time that it takes does not grow with them.
func TestStatusIsFast(t *testing.T) {
	t.Parallel()
	logged, parked := 300_000, 60_000
	if *large {
		logged, parked = 10_000_000, 1_000_000
	}
	w := newWorld(t)
	const days = 15
	w.build(fmt.Sprintf("select outbox_make_partitions(now() - interval '%d days', %d)", days-1, days-1),
		// Each hundredth row is about a death, as after a bad day.
		fmt.Sprintf(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			select gen_random_uuid(), 1 + i %% 2, 1, case when i %% 100 = 0 then 'dead' else 'delivered' end, now() - (%[1]d - i) * interval '%[2]d days' / %[1]d,
				'0/0'::pg_lsn + i, 0, 7 from generate_series(1, %[1]d) i`, logged, days-1),
		// The dead letters of the first sink are all behind the rows that are looked at.
		fmt.Sprintf(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, next_attempt_at, parked_at, event, payload)
			select 1 + i %% 2, '0/0'::pg_lsn + i, 0, gen_random_uuid(), i %% 1000, case when i > %[1]d - 2000 and i %% 100 = 0 and i %% 2 = 0 then 'dead' else 'parked' end,
				case when i %% 10 = 0 then now() end, now() - interval '1 hour' + i * interval '1 microsecond', '{"aggregate_type":"order","aggregate_id":"1"}', convert_to(repeat('x', 300), 'UTF8')
			from generate_series(1, %[1]d) i`, parked),
		`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
			select event_id, processor_id, 1, 'dead', now(), commit_lsn, tx_index, 7 from outbox_parked where status = 'dead' and processor_id = 1`,
		"analyze outbox_delivery_log", "vacuum analyze outbox_parked")
	cfg := StatusConfig{Config: w.admin, DSNPlace: "test", MaxInFlight: 32_768}
	before := w.scans()
	s, err := ReadStatus(pgtest.Context(t), cfg)
	if err != nil || len(s.Unknown) != 0 {
		t.Fatal(err, s.Unknown)
	}
	after := w.scans()
	for deadline := time.Now().Add(20 * time.Second); after.index == before.index; after = w.scans() { // the server counts them a moment later
		if time.Now().After(deadline) {
			t.Fatal("no index of log or parked rows was used within 20 s")
		}
	}
	if after.sequential != before.sequential {
		t.Errorf("%d sequential scans of the log or of parked rows", after.sequential-before.sequential)
	}
	if sink := s.Sinks[0]; !sink.Rows.AtLeast || !sink.Rows.OldestAtLeast || *sink.Rows.Dead != 20 || *sink.Rows.OldestSeconds < 3500 {
		t.Errorf("rows %+v: want 20 dead letters that the log tells of, and the oldest an hour old", sink.Rows)
	}
	var all []time.Duration
	for range 10 {
		began := time.Now()
		if _, err := ReadStatus(pgtest.Context(t), cfg); err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Since(began))
	}
	t.Logf("%d rows in the log, %d parked: %v", logged, parked, all)
	if *large && all[len(all)/2] > statusLimit {
		t.Errorf("it took %v, want %v at most", all, statusLimit)
	}
}

// scanned counts how often tables were read.
type scanned struct{ sequential, index int64 }

// scans counts the scans of the log's partitions and of outbox_parked.
func (w *world) scans() (s scanned) {
	w.t.Helper()
	err := w.conn.QueryRow(pgtest.Context(w.t), `select sum(seq_scan)::bigint, sum(idx_scan)::bigint from pg_stat_all_tables
		where relname ~ '^outbox_(parked|delivery_log)'`).Scan(&s.sequential, &s.index)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// build runs statements that may take minutes.
func (w *world) build(sqls ...string) {
	w.t.Helper()
	for _, sql := range sqls {
		if _, err := w.conn.Exec(w.t.Context(), sql); err != nil {
			w.t.Fatalf("%s: %v", sql, err)
		}
	}
}
