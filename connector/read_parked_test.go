package connector

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/testrand"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// describe returns what a read has found, as lines of text that can be compared.
func describe(a ledger.ParkedRead) []string {
	var s []string
	for _, d := range a.Fresh {
		s = append(s, fmt.Sprintf("fresh %s %d %s %d %d", d.Position, d.AggregateHash, d.EventID, d.Attempts, d.Tries))
	}
	for _, d := range a.Due {
		s = append(s, fmt.Sprintf("due %s %d %s %d %d %.10q", d.Position, d.AggregateHash, d.EventID, d.Attempts, d.Tries, d.Payload))
	}
	s = append(s, fmt.Sprint("more ", a.More), fmt.Sprint("large ", a.Large), fmt.Sprint("first ", a.First))
	for _, h := range slices.Sorted(maps.Keys(a.Heads)) {
		in := time.Until(a.Heads[h]).Round(time.Minute)
		s = append(s, fmt.Sprint("head ", h, " in ", min(in, 1000*time.Hour)))
	}
	left := slices.Clone(a.Left)
	slices.Sort(left)
	return append(s, fmt.Sprint("left ", slices.Compact(left)))
}

// The SQL reads the same rows as memTable, on random tables and queries.
func TestParkedReads(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, pool := db.Conn(t), db.Pool(t, ledger.Pin)
	r := testrand.New(t)
	const most = 100_000 // bytes of one read; all the small rows of a round together are smaller
	large := []byte(strings.Repeat("x", most))
	for round := range 30 {
		if _, err := conn.Exec(t.Context(), "truncate outbox_parked"); err != nil {
			t.Fatal(err)
		}
		mem := &memLedger{}
		now := time.Now()
		for i := range 1 + r.IntN(60) {
			row := &memRow{
				processor: 1 + r.Int32N(2), pos: checkpoint.Position{LSN: 100 + 8*pglogrepl.LSN(r.IntN(10)), Index: int64(i) - 5}, id: fmt.Sprintf("0190a5d0-0000-7000-8000-%012x", i),
				hash: int64(r.IntN(8)-4) * 1_000_000_007, attempts: r.IntN(3), event: []byte(`{"aggregate_type":"t","aggregate_id":"a"}`), payload: []byte("p"),
			}
			if r.IntN(10) == 0 {
				row.payload = large
			}
			switch r.IntN(8) {
			case 0:
				row.tries, row.due = 1, now.Add(-time.Duration(1+r.IntN(100))*time.Minute-time.Duration(i)*time.Second)
			case 1:
				row.tries, row.due = 1, now.Add(time.Duration(10+r.IntN(100))*time.Minute)
			case 2:
				row.dead = true
			case 3:
				row.dead, row.due = true, forever
			}
			at, _ := mem.find(row.processor, row.pos)
			mem.rows = slices.Insert(mem.rows, at, row)
			insertRow(t, conn, row)
		}
		lanes := 1 + r.IntN(3)
		lane := r.IntN(lanes)
		q := ledger.ParkedQuery{
			Prev: checkpoint.MinPosition, From: checkpoint.MinPosition, Floor: checkpoint.MinPosition,
			MaxDue: 1 + r.IntN(5), MaxHeads: maxHeld, MaxBytes: most, Large: r.IntN(2) == 0,
		}
		if r.IntN(2) == 0 {
			q.Floor = checkpoint.Position{LSN: 100 + 8*pglogrepl.LSN(r.IntN(10)), Index: int64(r.IntN(50))}
		}
		if r.IntN(2) == 0 {
			q.From = checkpoint.Position{LSN: 100 + 8*pglogrepl.LSN(r.IntN(10)), Index: int64(r.IntN(50))}
			q.Passed = map[int64]struct{}{1_000_000_007: {}}
			if r.IntN(2) == 0 {
				q.Prev = checkpoint.Position{LSN: 108, Index: 0}
			}
		}
		for _, row := range mem.rows {
			if r.IntN(3) == 0 {
				q.AlsoDue = append(q.AlsoDue, row.pos)
			}
		}
		model := mem.table(1, lane, lanes)
		model.large = func(r *memRow) bool { return len(r.payload) == most }
		want, _ := model.Read(t.Context(), q)
		got, err := ledger.Schema("public").NewParkedReader(pool, 1, lane, lanes).Read(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(describe(want), describe(got)); diff != "" {
			t.Fatalf("round %d, lane %d of %d, %+v:\n%s", round, lane, lanes, q, diff)
		}
	}
}

func insertRow(t *testing.T, conn *pgx.Conn, r *memRow) {
	t.Helper()
	status := map[bool]string{true: "dead", false: "parked"}[r.dead]
	var due any
	switch {
	case r.due.Equal(forever):
		due = "infinity"
	case !r.due.IsZero():
		due = r.due.Format(time.RFC3339Nano)
	}
	_, err := conn.Exec(t.Context(), `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, attempts, tries, next_attempt_at, event, payload)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::timestamptz, $10, $11)`,
		r.processor, r.pos.LSN, r.pos.Index, r.id, r.hash, status, r.attempts, r.tries, due, string(r.event), r.payload)
	if err != nil {
		t.Fatal(err)
	}
}

// A probe may be any due row, and each topic has the same chance: many rows of a topic that never answers must not keep the others out.
func TestProbeOfDueRows(t *testing.T) {
	t.Parallel()
	var r readResult
	if r.probe(checkpoint.MinPosition) != nil {
		t.Error("a probe without rows")
	}
	for range 100 {
		r.due = append(r.due, &delivery{Message: sinks.Message{Topic: "hangs"}})
	}
	r.due = append(r.due, &delivery{Message: sinks.Message{Topic: "answers"}})
	seen := map[string]int{}
	for range 200 {
		rows := r.probe(checkpoint.MinPosition)
		if len(rows) != 1 {
			t.Fatalf("%d rows", len(rows))
		}
		seen[rows[0].Topic]++
	}
	if seen["answers"] < 50 || seen["hangs"] < 50 { // 2 to the power of −40 by chance
		t.Errorf("probes by topic: %v", seen)
	}
}

// A probe is not the row that has asked last, unless there is no other: a message that is never answered must not keep the others out.
func TestProbeIsAnotherRow(t *testing.T) {
	t.Parallel()
	at := func(i int64) *delivery { return &delivery{Message: sinks.Message{LSN: 7, Index: i}} }
	last := at(2).position()
	for range 50 {
		some := readResult{due: []*delivery{at(1), at(2), at(3)}}
		if rows := some.probe(last); len(rows) != 1 || rows[0].position() == last {
			t.Fatalf("probes %v", rows)
		}
	}
	alone := readResult{due: []*delivery{at(2)}}
	if rows := alone.probe(last); len(rows) != 1 {
		t.Errorf("no probe, although there is a row")
	}
}
