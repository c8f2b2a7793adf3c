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

// memLedger is outbox_parked in memory, as simple as possible: it does what the recorder's SQL does to the table, and returns what a lane's SQL
// reads of it. TestParkedReads compares it with the SQL.
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

// forever stands for PostgreSQL's infinity: the due time of a dead letter that holds its aggregate.
var forever = time.Unix(1<<40, 0)

func (l *memLedger) find(processor int32, pos checkpoint.Position) (int, bool) {
	return slices.BinarySearchFunc(l.rows, memRow{processor: processor, pos: pos}, func(r *memRow, want memRow) int {
		if c := r.pos.Compare(want.pos); c != 0 {
			return c
		}
		return int(r.processor - want.processor)
	})
}

// apply makes the changes of these outcomes, and returns by how much they have changed the numbers of rows, by processor. It panics if one of
// them inserts a row that exists.
func (l *memLedger) apply(outcomes []checkpoint.Outcome) map[int32]ledger.RowCounts {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.counts()
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
	changes := l.counts()
	for id, n := range before {
		changes[id] = ledger.RowCounts{Parked: changes[id].Parked - n.Parked, Dead: changes[id].Dead - n.Dead}
	}
	return changes
}

// counts counts the rows by processor. The caller holds mu.
func (l *memLedger) counts() map[int32]ledger.RowCounts {
	counts := map[int32]ledger.RowCounts{}
	for _, r := range l.rows {
		one := ledger.RowCounts{Parked: 1}
		if r.dead {
			one = ledger.RowCounts{Dead: 1}
		}
		counts[r.processor] = counts[r.processor].Plus(one)
	}
	return counts
}

func (r *memRow) change(o checkpoint.Outcome) {
	p := o.Parked
	r.dead, r.attempts, r.tries, r.triedAt, r.due = o.Status == checkpoint.Dead, p.Attempts, p.Tries, p.TriedAt, p.NextAttempt
	if p.Blocks {
		r.due = forever
	}
}

// memTable is a lane's share of a memLedger. Its Read does what ledger.ParkedReader's does.
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
func (t *memTable) Read(_ context.Context, q ledger.ParkedQuery) (ledger.ParkedRead, error) {
	t.delay()
	defer t.delay()
	t.mu.Lock()
	defer t.mu.Unlock()
	a := ledger.ParkedRead{Heads: map[int64]time.Time{}, First: checkpoint.MinPosition}
	passed := map[int64]struct{}{}
	for h := range q.Passed {
		passed[h] = struct{}{}
	}
	var mine []*memRow
	for _, r := range t.rows {
		if r.processor != t.processor || router.Lane(r.hash, t.lanes) != t.lane || q.Before != (checkpoint.Position{}) && r.pos.Compare(q.Before) >= 0 {
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
	fresh := rowList{isLarge: t.large, mayBeLarge: q.Large}
	for _, r := range mine {
		_, behind := a.Heads[r.hash]
		_, left := passed[r.hash]
		switch {
		case behind:
		case !r.due.IsZero():
			a.Heads[r.hash] = r.due
			if !r.dead && (!r.due.After(time.Now()) || slices.Contains(q.AlsoDue, r.pos)) {
				due = append(due, r)
			}
		case !r.dead && r.pos.Compare(q.Start()) > 0 && !left && fresh.offered < t.limit:
			fresh.offer(r)
		}
	}
	slices.SortStableFunc(due, func(a, b *memRow) int { return a.due.Compare(b.due) })
	tried := rowList{isLarge: t.large, mayBeLarge: q.Large && !fresh.alone}
	for _, r := range due[:min(len(due), q.MaxDue)] {
		tried.offer(r)
	}
	a.Fresh, a.Due, a.Large = fresh.rows, tried.rows, fresh.leftLarge || tried.leftLarge
	a.More = len(a.Fresh) > 0 && (fresh.offered == t.limit || len(a.Fresh) < fresh.offered)
	return a, nil
}

// rowList collects the fresh or the due rows of one read. It keeps the first rows that are offered, up to the first one that does not fit:
// a large row fits only if it is the first, and then it stays alone.
type rowList struct {
	isLarge    func(*memRow) bool
	mayBeLarge bool // this read may return a large row

	offered   int
	rows      []ledger.ParkedDelivery
	alone     bool // rows is one large row
	leftLarge bool // the first row is large, and this read may not return it
}

func (l *rowList) offer(r *memRow) {
	l.offered++
	first := l.offered == 1
	switch {
	case l.alone || len(l.rows) < l.offered-1: // a row before this one did not fit
	case !l.isLarge(r):
		l.rows = append(l.rows, r.parked())
	case first && l.mayBeLarge:
		l.rows, l.alone = append(l.rows, r.parked()), true
	case first:
		l.leftLarge = true
	}
}

func (r *memRow) parked() ledger.ParkedDelivery {
	row := ledger.ParkedDelivery{
		Position: r.pos, EventID: r.id, Payload: r.payload, AggregateHash: r.hash, Attempts: r.attempts, Tries: r.tries, TriedAt: r.triedAt,
	}
	if err := json.Unmarshal(r.event, &row.Event); err != nil {
		panic(err)
	}
	return row
}

// ofTestEvent gives topic and key of the events in tests: no topic, and the aggregate as the key.
func ofTestEvent(e *outbox.Event) (topic, key string) { return "", e.AggregateID }
