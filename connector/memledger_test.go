package connector

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

// memLedger is outbox_parked in memory: what the recorder's SQL does to it, and what a lane's SQL reads of it, in the plainest
// words.
type memLedger struct {
	mu   sync.Mutex
	rows []*memRow // in position order
}

type memRow struct {
	processor int32
	pos       checkpoint.Position
	id        string
	dead      bool
	attempts  int
	tries     int
	triedAt   time.Time
	due       time.Time // zero: null
	hash      int64
	event     []byte
	payload   []byte
}

// forever is infinity.
var forever = time.Unix(1<<40, 0)

func (l *memLedger) find(processor int32, pos checkpoint.Position) (int, bool) {
	return slices.BinarySearchFunc(l.rows, memRow{processor: processor, pos: pos}, func(r *memRow, want memRow) int {
		if c := r.pos.Compare(want.pos); c != 0 {
			return c
		}
		return int(r.processor - want.processor)
	})
}

// apply makes the changes that these outcomes ask for. It panics where one inserts a row that is there.
func (l *memLedger) apply(outcomes []checkpoint.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range outcomes {
		i, found := l.find(o.Processor, o.Position)
		switch o.Row {
		case checkpoint.RowInsert:
			if found {
				panic("a row is inserted twice: " + o.Position.String())
			}
			l.rows = slices.Insert(l.rows, i, &memRow{
				processor: o.Processor, pos: o.Position, id: o.EventID, hash: o.Parked.AggregateHash, event: o.Parked.Event, payload: o.Parked.Payload,
			})
			l.rows[i].change(o)
		case checkpoint.RowUpdate:
			if found && !l.rows[i].dead {
				l.rows[i].change(o)
			}
		case checkpoint.RowDelete:
			if found {
				l.rows = slices.Delete(l.rows, i, i+1)
			}
		case checkpoint.RowNone:
		}
	}
}

func (r *memRow) change(o checkpoint.Outcome) {
	p := o.Parked
	r.dead, r.attempts, r.tries, r.triedAt, r.due = o.Status == checkpoint.Dead, p.Attempts, p.Tries, p.TriedAt, p.NextAttempt
	if p.Blocks {
		r.due = forever
	}
}

// memTable is a lane's share of it.
type memTable struct {
	*memLedger
	processor   int32
	lane, lanes int
	limit       int // rows of one read
	large       func(*memRow) bool
	delay       func() // before and after the snapshot
}

func (l *memLedger) table(processor int32, lane, lanes int) *memTable {
	return &memTable{l, processor, lane, lanes, ledger.MaxFresh, func(*memRow) bool { return false }, func() {}}
}

// Read is ledger.ParkedReader's.
func (t *memTable) Read(_ context.Context, q ledger.ParkedQuery) (ledger.ParkedRows, error) {
	t.delay()
	defer t.delay()
	t.mu.Lock()
	defer t.mu.Unlock()
	a := ledger.ParkedRows{Heads: map[int64]time.Time{}, First: checkpoint.MinPosition}
	passed := map[int64]struct{}{}
	for h := range q.Passed {
		passed[h] = struct{}{}
	}
	var mine []*memRow
	for _, r := range t.rows {
		if r.processor != t.processor || router.Lane(r.hash, t.lanes) != t.lane {
			continue
		}
		mine = append(mine, r)
		if q.NewPass() && a.First == checkpoint.MinPosition && !r.dead && r.due.IsZero() && r.pos.Compare(q.Floor) > 0 {
			a.First = r.pos
		}
		if r.pos.Compare(q.Prev) > 0 && r.pos.Compare(q.From) <= 0 && (!r.dead || !r.due.IsZero()) {
			passed[r.hash] = struct{}{}
			a.Left = append(a.Left, r.hash)
		}
	}
	var due []*memRow
	total := 0
	for _, r := range mine {
		_, behind := a.Heads[r.hash]
		_, left := passed[r.hash]
		switch {
		case behind:
		case !r.due.IsZero():
			a.Heads[r.hash] = r.due
			if !r.dead && !r.due.After(time.Now()) {
				due = append(due, r)
			}
		case !r.dead && r.pos.Compare(q.Start()) > 0 && !left && total < t.limit:
			total++
			a.Fresh = t.fitting(a.Fresh, total, r, q.Large, &a)
		}
	}
	slices.SortStableFunc(due, func(a, b *memRow) int { return a.due.Compare(b.due) })
	large := q.Large && (len(a.Fresh) == 0 || !t.large(t.rowOf(a.Fresh[0])))
	for i, r := range due[:min(len(due), q.MaxDue)] {
		a.Due = t.fitting(a.Due, i+1, r, large, &a)
	}
	a.More = len(a.Fresh) > 0 && (total == t.limit || len(a.Fresh) < total)
	return a, nil
}

// fitting adds the nth row to a list if all before it are there, and it is not large; or if it is large, the first, and may be.
func (t *memTable) fitting(list []ledger.ParkedRow, nth int, r *memRow, mayBeLarge bool, a *ledger.ParkedRows) []ledger.ParkedRow {
	alone := len(list) == 1 && t.large(t.rowOf(list[0]))
	if len(list) < nth-1 || alone {
		return list
	}
	if t.large(r) && (!mayBeLarge || nth > 1) {
		a.Large = a.Large || nth == 1
		return list
	}
	return append(list, r.parked())
}

func (t *memTable) rowOf(row ledger.ParkedRow) *memRow {
	i, _ := t.find(t.processor, row.Position)
	return t.rows[i]
}

func (r *memRow) parked() ledger.ParkedRow {
	row := ledger.ParkedRow{
		Position: r.pos, EventID: r.id, Payload: r.payload, AggregateHash: r.hash, Attempts: r.attempts, Tries: r.tries, TriedAt: r.triedAt,
	}
	if err := json.Unmarshal(r.event, &row.Event); err != nil {
		panic(err)
	}
	return row
}

// ofTestEvent is a lane's address of the events in tests.
func ofTestEvent(e *outbox.Event) (topic, key string) { return "", e.AggregateID }
