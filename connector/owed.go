package connector

import (
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// owedRows knows what a sink has in outbox_parked. A count says how many rows there are, and each transaction that changes them says by
// how much: the recorder tells of its own, and persons' commands by NOTIFY. The two are combined exactly:
//
//  1. begin notes that a count begins. From now on the changes are kept, beside being added.
//  2. The count's statement has one snapshot. It says which transactions it sees: CountPoint.
//  3. end takes the numbers of the count, and adds those kept changes that the count has not seen.
//  4. A change of a transaction that the count has seen may still come afterwards, because a COMMIT is seen by others before we have its
//     answer, and a notice is late. add leaves it out.
//
// What plain SQL changes, or a notice that was lost, is found by the next count.
type owedRows struct {
	rows      ledger.RowCounts
	oldestAt  time.Time // since when the oldest parked row has been parked; zero if there is none
	committed time.Time // commit time of the first parked row in position order; zero if nobody knows
	countedAt time.Time // when rows were last counted; zero: nobody knows them

	point    ledger.CountPoint
	counting bool
	since    []ledger.RowChange // that were told since the count under way began

	stale   bool          // the oldest parked row may be another one than oldestAt says
	first   pglogrepl.LSN // no parked row is before it
	looking bool          // for the oldest row, and no person has changed rows since that began

	shown ledger.RowCounts // what isShown was last asked about
}

// begin notes that a count begins.
func (o *owedRows) begin() { o.counting, o.since = true, o.since[:0] }

// end takes the result of a count, which failed if count is nil.
func (o *owedRows) end(point ledger.CountPoint, count *ledger.ParkedCount, now time.Time) {
	o.counting = false
	if count == nil {
		return
	}
	o.point, o.countedAt = point, now
	o.rows, o.oldestAt, o.first = count.RowCounts, time.Time{}, 0
	if o.stale = count.Parked > 0; o.stale { // a look says when the first row's event was committed
		o.oldestAt = now.Add(-count.Oldest)
	} else {
		o.committed = time.Time{}
	}
	for _, c := range o.since {
		o.apply(c, now)
	}
}

// add adds a change.
func (o *owedRows) add(c ledger.RowChange, now time.Time) {
	if o.counting {
		o.since = append(o.since, c)
	}
	o.apply(c, now)
}

func (o *owedRows) apply(c ledger.RowChange, now time.Time) {
	if o.countedAt.IsZero() || o.point.Sees(c) {
		return
	}
	o.rows = o.rows.Plus(c.Rows)
	if c.Transaction > 0 { // a person may have retried a row before first
		o.first, o.looking = 0, false
	}
	switch {
	case o.rows.Parked <= 0:
		o.oldestAt, o.committed, o.stale = time.Time{}, time.Time{}, false
	case o.oldestAt.IsZero():
		o.oldestAt, o.committed, o.stale = now, time.Time{}, true
	default:
		o.stale = o.stale || c.Oldest
	}
}

// look returns where the oldest parked row is to be looked for, if it may be another one than before.
func (o *owedRows) look() (from pglogrepl.LSN, stale bool) {
	stale, o.stale = o.stale, false // what changes from now on makes it stale again
	o.looking = true
	return o.first, stale
}

// found takes what a look has found. prefix is the tracker's, from before the look: all events that are parked later are behind it.
func (o *owedRows) found(oldest ledger.OldestParked, prefix pglogrepl.LSN, now time.Time) {
	if oldest.First == 0 { // there was none
		return
	}
	if o.looking {
		o.first = min(oldest.First, prefix)
	}
	if o.rows.Parked > 0 {
		o.oldestAt, o.committed = now.Add(-oldest.Age), oldest.Committed
	}
}

// oldestCommitted returns the commit time of the oldest event that is parked. It is zero if none is. As long as nobody has looked, it is
// when the oldest row was parked: its event was committed shortly before.
func (o *owedRows) oldestCommitted() time.Time {
	if o.committed.IsZero() {
		return o.oldestAt
	}
	return o.committed
}

// isShown reports whether the numbers are what they were when it was last called. The age of the oldest row goes on growing.
func (o *owedRows) isShown() bool {
	same := o.rows == o.shown && o.oldestAt.IsZero()
	o.shown = o.rows
	return same
}

// counts returns the numbers as Status shows them. Plain SQL may have made them negative for a while.
func (o *owedRows) counts(now time.Time) (parked, dead int64, oldest time.Duration) {
	if !o.oldestAt.IsZero() {
		oldest = max(0, now.Sub(o.oldestAt))
	}
	return max(0, o.rows.Parked), max(0, o.rows.Dead), oldest
}
