package connector

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// In whatever order counts, answers of COMMITs and notices come, the numbers are those of the table once everything has come.
func TestOwedRowsAreExact(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2000) {
		if got, want := owedWorld(seed); got != want {
			t.Fatalf("seed %d: %+v, want %+v", seed, got, want)
		}
	}
}

// owedWorld makes random changes of a table, and brings them and counts to owedRows late. It returns what owedRows has at the end, and
// what the table has.
func owedWorld(seed uint64) (got, want ledger.RowCounts) {
	r := rand.New(rand.NewPCG(seed, 0))
	var o owedRows
	var batch int64
	open := map[uint64]ledger.RowChange{} // transactions of persons that are not committed
	next := uint64(1)
	var batches, notices []ledger.RowChange // committed, and not told yet
	var under *ledger.ParkedCount           // the result of the count under way
	var point ledger.CountPoint
	end := func() {
		o.end(point, under, time.Now())
		under = nil
	}
	change := func() ledger.RowCounts { return ledger.RowCounts{Parked: r.Int64N(7) - 2, Dead: r.Int64N(5) - 1} }
	commit := func(id uint64) {
		want = want.Plus(open[id].Rows)
		notices = append(notices, open[id])
		delete(open, id)
	}
	for range 60 {
		switch r.IntN(8) {
		case 0: // the recorder commits; it waits for the answer before the next batch
			if len(batches) == 0 {
				batch++
				c := ledger.RowChange{Rows: change(), Batch: batch}
				want = want.Plus(c.Rows)
				batches = append(batches, c)
			}
		case 1:
			if len(batches) > 0 {
				o.add(batches[0], time.Now())
				batches = nil
			}
		case 2:
			open[next] = ledger.RowChange{Rows: change(), Transaction: next}
			next++
		case 3:
			for id := range open {
				commit(id)
				break
			}
		case 4:
			if len(notices) > 0 {
				o.add(notices[0], time.Now())
				notices = notices[1:]
			}
		case 5, 6: // a count begins, and takes its snapshot
			if under != nil {
				break
			}
			o.begin()
			point = ledger.CountPoint{Batch: batch, Snapshot: ledger.Snapshot{Min: next, Max: next}}
			for id := range open {
				point.Snapshot.Running = append(point.Snapshot.Running, id)
				point.Snapshot.Min = min(point.Snapshot.Min, id)
			}
			if r.IntN(4) == 0 { // it fails
				o.end(ledger.CountPoint{}, nil, time.Now())
				break
			}
			under = &ledger.ParkedCount{RowCounts: want}
		case 7:
			if under != nil {
				end()
			}
		}
	}
	if under == nil && o.countedAt.IsZero() { // nobody knows the numbers before the first count
		o.begin()
		point, under = ledger.CountPoint{Batch: batch, Snapshot: ledger.Snapshot{Min: next, Max: next}}, &ledger.ParkedCount{RowCounts: want}
		for id := range open {
			point.Snapshot.Running = append(point.Snapshot.Running, id)
			point.Snapshot.Min = min(point.Snapshot.Min, id)
		}
	}
	for id := range open {
		commit(id)
	}
	for _, c := range slices.Concat(batches, notices) {
		o.add(c, time.Now())
	}
	if under != nil {
		end()
	}
	return o.rows, want
}

// The age of the oldest row grows by itself. A row that has left, or is retried, has it looked up again; a row that is parked anew has not.
func TestOldestParked(t *testing.T) {
	t.Parallel()
	began := time.Now()
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	var o owedRows
	var batch int64
	parked := func(n int64) ledger.RowChange {
		batch++
		return ledger.RowChange{Rows: ledger.RowCounts{Parked: n}, Batch: batch, Oldest: n < 0}
	}
	age := func(second int, want string) {
		t.Helper()
		parked, _, oldest := o.counts(at(second))
		if got := fmt.Sprintf("%d parked, %s", parked, oldest); got != want {
			t.Errorf("after %d s: %s, want %s", second, got, want)
		}
	}
	look := func(want string) {
		t.Helper()
		from, stale := o.look()
		if got := fmt.Sprintf("from %d, stale: %t", uint64(from), stale); got != want {
			t.Errorf("a look %s, want %s", got, want)
		}
	}
	o.add(parked(5), at(0))
	age(0, "0 parked, 0s") // nobody has counted
	o.begin()
	o.end(ledger.CountPoint{Batch: 1}, &ledger.ParkedCount{RowCounts: ledger.RowCounts{Parked: 5}, Oldest: 10 * time.Second}, at(1))
	age(1, "5 parked, 10s")
	age(4, "5 parked, 13s")
	committed := func(want time.Time) {
		t.Helper()
		if got := o.oldestCommitted(); !got.Equal(want) {
			t.Errorf("the oldest event was committed at %s, want %s", got.Sub(began), want.Sub(began))
		}
	}
	committed(at(-9))           // when the oldest row was parked, before a look
	look("from 0, stale: true") // a count does not say when the first event was committed
	o.found(ledger.OldestParked{Age: 14 * time.Second, First: 60, Committed: at(-20)}, 90, at(5))
	committed(at(-20))
	o.add(parked(1), at(5)) // a younger row
	look("from 60, stale: false")
	o.add(parked(-1), at(6)) // delivered, perhaps the oldest
	look("from 60, stale: true")
	o.found(ledger.OldestParked{Age: 2 * time.Second, First: 70}, 90, at(6))
	age(7, "5 parked, 3s")
	look("from 70, stale: false")
	o.add(parked(-1), at(8))
	look("from 70, stale: true")
	o.found(ledger.OldestParked{Age: time.Second, First: 100}, 90, at(8)) // what is in flight behind 90 may be parked before 100
	look("from 90, stale: false")
	o.add(ledger.RowChange{Rows: ledger.RowCounts{Parked: 1, Dead: -1}, Transaction: 7, Oldest: true}, at(9)) // a person retries an old row
	look("from 0, stale: true")
	o.add(ledger.RowChange{Rows: ledger.RowCounts{Parked: 1, Dead: -1}, Transaction: 8, Oldest: true}, at(9)) // and another one during the look
	o.found(ledger.OldestParked{Age: time.Hour, First: 95}, 90, at(9))
	look("from 0, stale: true")
	o.found(ledger.OldestParked{Age: time.Hour, First: 20}, 90, at(9))
	look("from 20, stale: false")
	age(10, "6 parked, 1h0m1s")
	o.add(parked(-6), at(11))
	committed(time.Time{})
	age(12, "0 parked, 0s")
	look("from 20, stale: false")
	o.add(parked(2), at(13)) // the first one again
	age(14, "2 parked, 1s")
	look("from 20, stale: true")
}
