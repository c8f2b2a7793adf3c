package connector

import (
	"fmt"
	"slices"
	"time"
)

// personChange is what a person does with a row of outbox_parked.
type personChange int

const (
	retryDeadLetter personChange = iota
	discardDeadLetter
	declareDead // of a parked row
)

// makeChange makes this change to one of the rows of a sink to which it applies. pick says which. It returns what a notification says of it
// behind the processor.
func (l *worldLedger) makeChange(sink, pick int, what personChange) string {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.parked.mu.Lock()
	defer l.parked.mu.Unlock()
	var rows []*memRow
	for _, r := range l.parked.rows {
		if r.processor == processor(sink) && r.dead == (what != declareDead) {
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return ""
	}
	l.w.stats.Persons++
	l.changes++
	switch r := rows[pick%len(rows)]; what {
	case retryDeadLetter:
		l.retry(r)
		return fmt.Sprintf(":rows:%d:1:-1", l.changes)
	case discardDeadLetter:
		l.discard(r)
		return fmt.Sprintf(":rows:%d:0:-1", l.changes)
	case declareDead:
		l.declareDead(r)
		return fmt.Sprintf(":rows:%d:-1:1", l.changes)
	}
	return ""
}

func (l *worldLedger) declareDead(r *memRow) {
	e, sink := l.w.events[r.id], r.processor-1
	l.w.trace("PERSON kills %v of sink%d", e, sink)
	r.dead, r.due, r.attempts = true, time.Time{}, min(r.attempts, max(r.tries-1, 0)) // a try may be under way
	if l.w.cfg.block {
		r.due = forever
	}
	l.displaced[worldDelivery{r.processor, e}] = true
	l.logRow(worldDelivery{r.processor, e}, r.pos, "dead")
}

// retry makes a dead letter due now, as package ledger's retryRows does: one try stands for all of those that the sink may have accepted.
func (l *worldLedger) retry(r *memRow) {
	l.w.trace("PERSON: processor %d, dead letter %v is retried", r.processor, l.w.events[r.id])
	l.w.sinks[r.processor-1].told(l.w.events[r.id]).retried()
	tries := 0
	if r.tries == 0 || r.attempts < r.tries {
		tries = 1
	}
	r.dead, r.attempts, r.tries, r.due = false, 0, tries, time.Now()
}

// makeDue does what ledger.Client.MakeDue does.
func (l *worldLedger) makeDue(sink int) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.parked.mu.Lock()
	defer l.parked.mu.Unlock()
	l.w.trace("PERSON wants sink%d asked now", sink)
	l.w.sinks[sink].askedNow()
	now := time.Now()
	for _, r := range l.parked.rows {
		if r.processor == processor(sink) && !r.dead && r.due.After(now) {
			r.due = now
		}
	}
}

func (l *worldLedger) discard(r *memRow) {
	e := l.w.events[r.id]
	l.w.trace("PERSON: processor %d, dead letter %v is discarded", r.processor, e)
	i, _ := l.parked.find(r.processor, r.pos)
	l.parked.rows = slices.Delete(l.parked.rows, i, i+1)
	l.logRow(worldDelivery{r.processor, e}, r.pos, "discarded")
}

// settleDead retries each dead letter that can be accepted, and discards the others.
func (l *worldLedger) settleDead() {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.parked.mu.Lock()
	defer l.parked.mu.Unlock()
	for _, r := range slices.Clone(l.parked.rows) {
		switch {
		case !r.dead:
		case l.w.events[r.id].reactions[r.processor-1].kind == reactionAccepted:
			l.retry(r)
		default:
			l.discard(r)
		}
	}
}
