package ledger_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Whatever recorder and persons do to the same rows, a count and the changes that are told and that it has not seen are what the
// table has.
func TestRowChangesAreExact(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec(`insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'c', 'one', 'stdout')`)
	ctx := pgtest.Context(t)
	heard := l.db.Conn(t)
	if err := ledger.ListenChanged(ctx, heard); err != nil {
		t.Fatal(err)
	}
	client, err := ledger.NewClient(ctx, l.db.Conn(t), "public", "c")
	if err != nil {
		t.Fatal(err)
	}
	var told []ledger.RowChange
	cfg := l.config()
	cfg.Changed = func(changes []ledger.RowChange) { told = append(told, changes...) }
	r := l.record(cfg)
	r.Begin()
	e := r.Add(pos(100, 0), 10_000, 10, time.Now())
	r.Tracker.Commit(checkpoint.Transaction{LSN: 100, EndLSN: 108, Last: 0, Ours: true})
	random := rand.New(rand.NewPCG(1, 2))
	rows := int64(0) // that were ever parked; persons and earlier outcomes may have taken them
	outcome := func() checkpoint.Outcome {
		o := checkpoint.Outcome{Position: pos(100, random.Int64N(rows+1)), Row: checkpoint.RowUpdate, Parked: &checkpoint.ParkedState{}}
		switch x := random.IntN(8); {
		case x < 3 || o.Position.Index == rows:
			o.Position.Index, o.Row, o.Settles, o.Status = rows, checkpoint.RowInsert, true, checkpoint.Parked
			rows++
			if x == 0 {
				o.Status = checkpoint.Dead
			}
		case x < 5:
			o.Status = checkpoint.Dead
		case x < 6:
			o.Status = checkpoint.Failed
		default:
			o.Status, o.Row, o.Parked = checkpoint.Delivered, checkpoint.RowDelete, nil
		}
		return o
	}
	var first ledger.ParkedCounts
	for step := range 90 {
		var batch []checkpoint.Outcome
		for range 1 + random.IntN(6) {
			batch = append(batch, outcome())
		}
		r.giveParked(e, batch...)
		change := ledger.Change{Action: []ledger.Action{ledger.Retry, ledger.Discard, ledger.Kill}[step%3], Slot: testSlot}
		var keys []checkpoint.Key
		for n := range rows {
			if random.IntN(20) == 0 {
				keys = append(keys, checkpoint.Key{Processor: 1, Position: pos(100, n)})
			}
		}
		if _, err := client.Change(ctx, change, keys); err != nil {
			t.Fatal(err)
		}
		if step == 30 {
			if first, err = ledger.Schema("public").CountParked(ctx, l.conn, testSlot, []int32{1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	told = append(told, notices(t, heard)...)
	last, err := ledger.Schema("public").CountParked(ctx, l.conn, testSlot, []int32{1})
	if err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]ledger.ParkedCounts{"nothing": {Sinks: map[int32]ledger.ParkedCount{}}, "a count": first, "the last count": last} {
		got := from.Sinks[1].RowCounts
		for _, c := range told {
			if !from.Point.Sees(c) {
				got = got.Plus(c.Rows)
			}
		}
		if got != last.Sinks[1].RowCounts || got == (ledger.RowCounts{}) {
			t.Errorf("from %s, and the %d changes since: %+v, the table has %+v", name, len(told), got, last.Sinks[1].RowCounts)
		}
	}
	want := l.query("select concat(count(*) filter (where status = 'parked'), ' ', count(*) filter (where status = 'dead')) from outbox_parked")
	if got := fmt.Sprint(last.Sinks[1].Parked, last.Sinks[1].Dead); got != want {
		t.Errorf("counted %s, want %s", got, want)
	}
}

// notices returns what persons' changes have told since LISTEN.
func notices(t *testing.T, conn *pgx.Conn) (told []ledger.RowChange) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), "select pg_notify('outbox_changed', 'the end')"); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := conn.WaitForNotification(pgtest.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		if n.Payload == "the end" {
			return told
		}
		if notice, ok := ledger.Schema("public").ParseNotice(n.Payload); ok && notice.Rows.Transaction > 0 {
			told = append(told, notice.Rows)
		}
	}
}

// A count knows of a transaction that is under way that it has not seen it, and of one that was committed that it has.
func TestCountPoint(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec("insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'c', 'one', 'stdout')")
	schema := ledger.Schema("public")
	ids := map[string]uint64{}
	begin := func(name string) pgx.Tx {
		tx, err := l.db.Conn(t).Begin(t.Context())
		if err == nil {
			var id uint64
			err = tx.QueryRow(t.Context(), "select pg_current_xact_id()::text::bigint").Scan(&id)
			ids[name] = id
		}
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	commit := func(tx pgx.Tx) {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	commit(begin("before"))
	open := begin("open")
	commit(begin("between"))
	counts, err := schema.CountParked(t.Context(), l.conn, testSlot, []int32{1})
	if err != nil {
		t.Fatal(err)
	}
	commit(open)
	commit(begin("after"))
	for name, want := range map[string]bool{"before": true, "open": false, "between": true, "after": false} {
		if got := counts.Point.Sees(ledger.RowChange{Transaction: ids[name]}); got != want {
			t.Errorf("%s: the count has seen it: %t, want %t (%+v, transaction %d)", name, got, want, counts.Point, ids[name])
		}
	}
}

const manyParked = `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, parked_at, event, payload)
	select 1, '1/0'::pg_lsn + n, 0, gen_random_uuid(), n, case when n <= %[1]d / 10 then 'dead' else 'parked' end, now() - (%[1]d * 2 - n) * interval '1 ms', '{}',
		convert_to(repeat('x', 600), 'UTF8')
	from generate_series(1, %[1]d) n`

// The look for the oldest row follows the primary key, whatever the planner believes of the table, and starts where it is told.
func TestOldestParked(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec("alter table outbox_parked set (autovacuum_enabled = off)")
	l.exec(fmt.Sprintf(manyParked, 20_000))
	schema := ledger.Schema("public")
	l.exec("update outbox_parked set parked_at = now() - interval '1 hour' where commit_lsn = '1/0'::pg_lsn + 2400") // within the window
	l.exec("update outbox_parked set parked_at = now() - interval '2 hours' where commit_lsn = '1/0'::pg_lsn + 3400")
	q := ledger.OldestQuery{Processor: 1, Window: 1000}
	for from, want := range map[pglogrepl.LSN]string{0: "1h0m0s at 1/7D1", 1<<32 + 2300: "1h0m0s at 1/8FC", 1<<32 + 2401: "2h0m0s at 1/961", 1<<32 + 20_001: "0s at 0/0"} {
		q.From = from
		got, err := schema.ReadOldest(t.Context(), l.conn, q)
		if s := fmt.Sprintf("%s at %s", got.Age.Round(time.Minute), got.First); err != nil || s != want {
			t.Errorf("from %s: %s (%v), want %s", from, s, err, want)
		}
	}
	err := pgx.BeginFunc(t.Context(), l.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), ledger.PlanOfReads); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), "explain "+ledger.ReadOldestStatement, 1, pglogrepl.LSN(0), 1000)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		plan := strings.Join(lines, "\n")
		if !strings.Contains(plan, "Index Scan using outbox_parked_pkey") || strings.Contains(plan, "Sort") {
			t.Errorf("the plan is\n%s", plan)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkOldestParked looks for the oldest of 1,000,000 rows behind 100,000 dead ones: from the beginning, and from where the last look has
// ended.
func BenchmarkOldestParked(b *testing.B) {
	db := pgtest.New(b)
	conn := db.Conn(b)
	if _, err := conn.Exec(b.Context(), fmt.Sprintf(manyParked, 1_000_000)); err != nil {
		b.Fatal(err)
	}
	for name, from := range map[string]pglogrepl.LSN{"beginning": 0, "last": 1<<32 + 100_000} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				found, err := ledger.Schema("public").ReadOldest(b.Context(), conn, ledger.OldestQuery{Processor: 1, From: from, Window: 32_768})
				if err != nil || found.First != 1<<32+100_001 {
					b.Fatal(found, err)
				}
			}
		})
	}
	b.Run("count", func(b *testing.B) {
		if _, err := conn.Exec(b.Context(), "insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'c', 'one', 'stdout')"); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if c, err := ledger.Schema("public").CountParked(b.Context(), conn, "s", []int32{1}); err != nil || c.Sinks[1].Parked != 900_000 {
				b.Fatal(c, err)
			}
		}
	})
}
