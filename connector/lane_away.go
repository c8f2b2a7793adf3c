package connector

import (
	"maps"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// awayRows are the rows of a lane in outbox_parked that wait for nothing but the destination: their last try found it away, and the table
// does not call them due yet. When the destination answers again, they are due at once; see breaker.answersAgain. A probe may also take
// one of them.
//
// Other rows, because there are too many or because an earlier session has tried them, are due at the time that the table has: a reset
// time after their try at the latest.
type awayRows struct {
	waiting, back rowTimes // back are those for which the destination is back
}

// rowTimes are rows, with the times at which the table says that they are due.
type rowTimes map[checkpoint.Position]time.Time

// add notes a row whose try has just found the destination away.
func (a *awayRows) add(p checkpoint.Position, due time.Time) {
	if len(a.waiting) >= maxHeld {
		return
	}
	if a.waiting == nil {
		a.waiting, a.back = rowTimes{}, rowTimes{}
	}
	a.waiting[p] = due
}

// tried forgets what is being tried.
func (a *awayRows) tried(batch []*delivery) {
	if len(a.waiting)+len(a.back) == 0 {
		return
	}
	for _, d := range batch {
		delete(a.waiting, d.position())
		delete(a.back, d.position())
	}
}

// notDue appends the rows to a list that the table does not call due yet, and forgets the others.
func (t rowTimes) notDue(list []checkpoint.Position, now time.Time) []checkpoint.Position {
	for p, due := range t {
		if due.After(now) {
			list = append(list, p)
		} else {
			delete(t, p)
		}
	}
	return list
}

// read notes what a read of the table has found. If it has found none of the rows that it asked for, they are not there any more, or
// stand behind another row of their aggregate.
func (a *awayRows) read(q ledger.ParkedQuery, r readResult) {
	if q.MaxDue > 0 && len(r.due) == 0 && !r.found.Large {
		for _, p := range q.AlsoDue {
			delete(a.waiting, p)
			delete(a.back, p)
		}
	}
}

// answersAgain makes due what waits because the destination was away: it has answered.
func (l *lane) answersAgain(now time.Time) {
	if l.hand.own.Before(l.hand.at) { // else a person may have asked for a try now
		l.hand.at = l.hand.own
	}
	if a := &l.away; len(a.waiting) > 0 {
		maps.Copy(a.back, a.waiting)
		clear(a.waiting)
		l.held.dueAt = now
		l.table.readAt = time.Time{}
	}
}
