package ledger_test

import (
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// firstRead begins a pass, as a lane does.
var firstRead = ledger.ParkedQuery{
	Prev: checkpoint.MinPosition, From: checkpoint.MinPosition, Floor: checkpoint.MinPosition,
	MaxDue: 500, MaxHeads: 10_000, MaxBytes: 4 << 20,
}

// A chunk is read in the key's order, with one probe for each row into the index of the heads. Nothing is sorted and no table read whole, even
// while the planner believes that the table is empty.
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
	reader := ledger.Schema("public").NewParkedReader(db.Pool(t, ledger.Pin), 1, 1, 4)
	for name := range reader.Statements() {
		plan := explain(t, reader, name)
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
	a, err := reader.Read(t.Context(), firstRead)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Fresh) != ledger.MaxFresh || !a.More {
		t.Errorf("%d fresh rows, more %t; want %d and more", len(a.Fresh), a.More, ledger.MaxFresh)
	}
}

// explain returns the plan of a statement of the reader, as it is planned in Read.
func explain(t *testing.T, r *ledger.ParkedReader, name string) string {
	t.Helper()
	q := firstRead
	args := map[string][]any{
		"fresh": {1, q.From.LSN, q.From.Index, 4, 1, []int64{1, 2}, ledger.MaxFresh, q.MaxBytes, false},
		"first": {1, q.From.LSN, q.From.Index, 4, 1},
		"heads": {1, 4, 1, q.MaxHeads + 1},
		"due":   {1, 4, 1, 500, q.MaxBytes, false, []string{"1/64", "1/C8"}, []int64{0, 0}},
		"left":  {1, 4, 1, q.From.LSN, q.From.Index, pglogrepl.LSN(1<<32 + 5000), 0},
	}
	args[name] = append(args[name], checkpoint.MaxPosition.LSN, checkpoint.MaxPosition.Index)
	var lines []string
	err := pgx.BeginFunc(t.Context(), r.Pool(), func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), ledger.PlanOfReads); err != nil {
			return err
		}
		if name != "fresh" {
			if _, err := tx.Exec(t.Context(), "set local enable_sort = on"); err != nil {
				return err
			}
		}
		rows, err := tx.Query(t.Context(), "explain (analyze, costs off, timing off) "+r.Statements()[name], args[name]...)
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
	reader := ledger.Schema("public").NewParkedReader(db.Pool(b, ledger.Pin), 1, 1, 4)
	for b.Loop() {
		a, err := reader.Read(b.Context(), firstRead)
		if err != nil {
			b.Fatal(err)
		}
		if len(a.Fresh) != ledger.MaxFresh {
			b.Fatalf("%d rows", len(a.Fresh))
		}
	}
}

// One read returns no more bytes than it may, however many large events are parked.
func TestParkedReadIsBounded(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	_, err := db.Conn(t).Exec(t.Context(), `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, next_attempt_at, event, payload)
		select 1, '1/0'::pg_lsn + n, 0, gen_random_uuid(), n, 'parked', n % 2, case when n % 2 = 1 then now() - interval '1 second' end, '{}',
			convert_to(repeat('x', 1048576), 'UTF8') from generate_series(1, 40) n`)
	if err != nil {
		t.Fatal(err)
	}
	reader := ledger.Schema("public").NewParkedReader(db.Pool(t, ledger.Pin), 1, 0, 1)
	a, err := reader.Read(t.Context(), firstRead)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Fresh) != 3 || !a.More || len(a.Due) != 3 || a.Large {
		t.Errorf("%d fresh rows of 1 MiB, more %t, and %d due ones, large %t; want 3 of each and more", len(a.Fresh), a.More, len(a.Due), a.Large)
	}
	// The event without its payload may be large, too, and it may be compressed in the table.
	if _, err := db.Conn(t).Exec(t.Context(), `update outbox_parked set payload = null, event = json_build_object('metadata', repeat('x', 5000000))`); err != nil {
		t.Fatal(err)
	}
	for _, large := range []bool{false, true} {
		q := firstRead
		q.Large = large
		a, err := reader.Read(t.Context(), q)
		if want := map[bool]int{true: 1}[large]; err != nil || len(a.Fresh) != want || len(a.Due) != 0 || !a.Large {
			t.Errorf("%d fresh rows and %d due ones with 5 MB of metadata, large %t, %v; want %d and 0", len(a.Fresh), len(a.Due), a.Large, err, want)
		}
	}
}
