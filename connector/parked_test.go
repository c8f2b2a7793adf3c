package connector

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

func newParkedTable(t testing.TB, db *pgtest.Database, lane, lanes int) *parkedTable {
	config, err := pgxpool.ParseConfig(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	ledger.Pin(&config.ConnConfig.Config)
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &parkedTable{
		pool: pool, sql: newParkedSQL("public"), processor: 1, lane: lane, lanes: lanes, most: maxReadBytes,
		address: func(e *outbox.Event) (string, string) { return e.AggregateType, e.AggregateID },
	}
}

// said puts an answer into words.
func said(a answer) []string {
	var s []string
	for _, d := range a.Fresh {
		s = append(s, fmt.Sprintf("fresh %s %d %s %d %d", d.position(), d.hash, d.Event.ID, d.attempts, d.tries))
	}
	for _, d := range a.Due {
		s = append(s, fmt.Sprintf("due %s %d %s %d %d %.10q", d.position(), d.hash, d.Event.ID, d.attempts, d.tries, d.Event.Payload))
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

// What SQL reads is what the words of the design say, which memTable spells out.
func TestParkedTableReads(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn := db.Conn(t)
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	const most = 100_000 // that no small rows ever come to
	large := []byte(strings.Repeat("x", most))
	for round := range 30 {
		if _, err := conn.Exec(t.Context(), "truncate outbox_parked"); err != nil {
			t.Fatal(err)
		}
		mem := &memLedger{}
		now := time.Now()
		for i := range 1 + r.IntN(60) {
			row := &memRow{
				processor: 1 + r.Int32N(2), pos: checkpoint.Position{LSN: 100 + 8*pglogrepl.LSN(r.IntN(10)), Index: int64(i) - 5}, id: eventID(i),
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
		q := question{Prev: before, From: before, Floor: before, Batch: 1 + r.IntN(5), Large: r.IntN(2) == 0}
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
		words := mem.table(1, lane, lanes)
		words.large = func(r *memRow) bool { return len(r.payload) == most }
		want, _ := words.read(t.Context(), q)
		table := newParkedTable(t, db, lane, lanes)
		table.most = most
		got, err := table.read(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(said(want), said(got)); diff != "" {
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

// A chunk is read in the key's order, with a probe a row into the index of the heads: nothing is sorted and nothing read whole,
// also while the planner believes that the table is empty.
func TestParkedPlan(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn := db.Conn(t)
	for _, sql := range []string{
		"alter table outbox_parked set (autovacuum_enabled = off)",
		`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, next_attempt_at, event, payload)
			select 1, '1/0'::pg_lsn + n, 0, gen_random_uuid(), hashint8extended(n % 10000, 0), 'parked', (n % 100 = 0)::int,
				case when n % 100 = 0 then now() + interval '1 hour' end, '{}', convert_to(repeat('x', 600), 'UTF8')
			from generate_series(1, 100000) n`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	table := newParkedTable(t, db, 1, 4)
	for name, sql := range map[string]string{"fresh": table.sql.fresh, "first": table.sql.first, "heads": table.sql.heads, "due": table.sql.due, "left": table.sql.left} {
		plan := table.explain(t, name, sql)
		for _, bad := range []string{"Seq Scan", "Bitmap", "Hash Join", "Merge Join"} {
			if strings.Contains(plan, bad) {
				t.Errorf("%s: the plan has a %s:\n%s", name, bad, plan)
			}
		}
		if (name == "fresh" || name == "first") && strings.Contains(plan, "Sort") {
			t.Errorf("%s rows are sorted:\n%s", name, plan)
		}
		if want := "idx_outbox_retry_ready"; name != "left" && name != "first" && !strings.Contains(plan, want) {
			t.Errorf("%s: %s is not used:\n%s", name, want, plan)
		}
	}
	a, err := table.read(t.Context(), question{Prev: before, From: before, Floor: before, Batch: 500})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Fresh) != maxFresh || !a.More {
		t.Errorf("%d fresh rows, more %t; want %d and more", len(a.Fresh), a.More, maxFresh)
	}
}

func (p *parkedTable) explain(t *testing.T, name, sql string) string {
	t.Helper()
	args := map[string][]any{
		"fresh": {p.processor, before.LSN, before.Index, p.lanes, p.lane, []int64{1, 2}, maxFresh, maxReadBytes, false},
		"first": {p.processor, before.LSN, before.Index, p.lanes, p.lane},
		"heads": {p.processor, p.lanes, p.lane, maxHeld + 1},
		"due":   {p.processor, p.lanes, p.lane, 500, maxReadBytes, false},
		"left":  {p.processor, p.lanes, p.lane, before.LSN, before.Index, pglogrepl.LSN(1<<32 + 5000), 0},
	}
	var lines []string
	err := pgx.BeginFunc(t.Context(), p.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), planParked); err != nil {
			return err
		}
		if name != "fresh" {
			if _, err := tx.Exec(t.Context(), "set local enable_sort = on"); err != nil {
				return err
			}
		}
		rows, err := tx.Query(t.Context(), "explain (analyze, costs off, timing off) "+sql, args[name]...)
		if err != nil {
			return err
		}
		lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// What is parked comes back as it was.
func TestEventJSON(t *testing.T) {
	t.Parallel()
	three := 3
	for _, metadata := range []string{"", `{"a": 1,  "b":"<&>"}`, ` {"a":1}`, "no json", `"text"`, "null"} {
		e := &outbox.Event{
			ID: "i", AggregateType: "t<", AggregateID: "a", EventType: "e", EventVersion: 2, Payload: []byte("\x00p"), Metadata: []byte(metadata),
			CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC), MaxRetries: &three, TenantID: "x", CorrelationID: "c", CausationID: "d",
		}
		committed := e.CreatedAt.Add(time.Second)
		got, at, err := eventOf(eventJSON(e, committed), e.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if metadata == "" {
			e.Metadata = nil
		}
		if diff := cmp.Diff(e, got); diff != "" || !at.Equal(committed) {
			t.Errorf("metadata %q: committed %s\n%s", metadata, at, diff)
		}
	}
	if got, _, err := eventOf(eventJSON(&outbox.Event{}, time.Time{}), nil); err != nil || !cmp.Equal(got, &outbox.Event{}) {
		t.Errorf("the empty event became %+v, %v", got, err)
	}
}

func eventID(n int) string { return fmt.Sprintf("0190a5d0-0000-7000-8000-%012x", n) }

// BenchmarkParkedRead reads a chunk out of 1,000,000 rows of 600 bytes and 100,000 aggregates, one lane of four.
func BenchmarkParkedRead(b *testing.B) {
	db := pgtest.New(b)
	conn := db.Conn(b)
	_, err := conn.Exec(b.Context(), `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, next_attempt_at, event, payload)
		select 1, '1/0'::pg_lsn + n, 0, gen_random_uuid(), hashint8extended(n % 100000, 0), 'parked', (n % 250 = 0)::int,
			case when n % 250 = 0 then now() + interval '1 hour' end, '{}', convert_to(repeat('x', 600), 'UTF8')
		from generate_series(1, 1000000) n`)
	if err != nil {
		b.Fatal(err)
	}
	table := newParkedTable(b, db, 1, 4)
	q := question{Prev: before, From: before, Floor: before, Batch: 500}
	for b.Loop() {
		a, err := table.read(b.Context(), q)
		if err != nil {
			b.Fatal(err)
		}
		if len(a.Fresh) != maxFresh {
			b.Fatalf("%d rows", len(a.Fresh))
		}
	}
}

// However many large events are parked, one read takes no more than it may.
func TestParkedReadIsBounded(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	_, err := db.Conn(t).Exec(t.Context(), `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, next_attempt_at, event, payload)
		select 1, '1/0'::pg_lsn + n, 0, gen_random_uuid(), n, 'parked', n % 2, case when n % 2 = 1 then now() - interval '1 second' end, '{}',
			convert_to(repeat('x', 1048576), 'UTF8') from generate_series(1, 40) n`)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newParkedTable(t, db, 0, 1).read(t.Context(), question{Prev: before, From: before, Floor: before, Batch: 500})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Fresh) != 3 || !a.More || len(a.Due) != 3 || a.Large {
		t.Errorf("%d fresh rows of 1 MiB, more %t, and %d due ones, large %t; want 3 of each and more", len(a.Fresh), a.More, len(a.Due), a.Large)
	}
	// What is large may be the event beside its payload as well, and compressed in the table.
	if _, err := db.Conn(t).Exec(t.Context(), `update outbox_parked set payload = null, event = json_build_object('metadata', repeat('x', 5000000))`); err != nil {
		t.Fatal(err)
	}
	for _, large := range []bool{false, true} {
		a, err := newParkedTable(t, db, 0, 1).read(t.Context(), question{Prev: before, From: before, Floor: before, Batch: 500, Large: large})
		if want := map[bool]int{true: 1}[large]; err != nil || len(a.Fresh) != want || len(a.Due) != 0 || !a.Large {
			t.Errorf("%d fresh rows and %d due ones with 5 MB of metadata, large %t, %v; want %d and 0", len(a.Fresh), len(a.Due), a.Large, err, want)
		}
	}
}
