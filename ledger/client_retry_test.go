package ledger_test

import (
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

func TestNotice(t *testing.T) {
	t.Parallel()
	for payload, want := range map[string]ledger.Notice{
		"public:7":       {Processor: 7},
		"public:7:retry": {Processor: 7, Retry: true},
		"public:7:later": {}, // of a version to come
		"public:7:rows:12:-3:3": {Processor: 7, Rows: ledger.RowChange{
			Processor: 7, Transaction: 12, Rows: ledger.RowCounts{Parked: -3, Dead: 3}, Oldest: true,
		}},
		"public:7:rows:12:-3": {},
		"public::retry":       {},
		"public:7:":           {},
		"cdc:7":               {},
		"public":              {},
	} {
		if got, ok := ledger.Schema("public").ParseNotice(payload); got != want || ok != (want != ledger.Notice{}) {
			t.Errorf("%s: %+v, %t, want %+v", payload, got, ok, want)
		}
	}
}

// A step of MakeDue follows the index of the tried rows from where the last step ended, whatever the planner believes of the table.
func TestMakeDuePlan(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn := db.Conn(t)
	pgtest.Exec(t, conn, "alter table outbox_parked set (autovacuum_enabled = off)",
		`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, next_attempt_at, event)
			select 1, '1/0'::pg_lsn + n, 0, gen_random_uuid(), hashint8extended(n % 10000, 0), 'parked', (n % 10 = 0)::int,
				case when n % 10 = 0 then now() + interval '1 hour' end, '{}'
			from generate_series(1, 50000) n`)
	if err := ledger.SetUpCommand(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	statement := ledger.Schema("public").TextFor(ledger.MakeDueStatement)
	rows, err := conn.Query(t.Context(), "explain (analyze, costs off, timing off) "+statement, 1, time.Now(), math.MinInt64, "0/0", math.MinInt64, 500)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	plan := strings.Join(lines, "\n")
	if !regexp.MustCompile(`using idx_outbox_retry_ready on outbox_parked \(actual rows=500(\.00)? `).MatchString(plan) {
		t.Errorf("the first 500 rows do not come out of idx_outbox_retry_ready:\n%s", plan)
	}
	if strings.Contains(plan, "Seq Scan") {
		t.Errorf("a table is read whole:\n%s", plan)
	}
}
