package connector

import (
	"slices"
	"sync"
)

// largeTurn lets one lane of a sink at a time hold a parked row that is larger than an ordinary read. The window does not count
// the rows that lanes read from outbox_parked. Without turns each lane could hold a row of max_event_bytes, and two copies of it
// while it reads. Each sink has its own largeTurn, so that no sink waits for another. Lanes get their turns in the order
// in which they ask, so a lane whose row is never answered does not keep the others out.
//
// It is safe for use by all lanes. The zero value is ready.
type largeTurn struct {
	mu      sync.Mutex
	holder  *lane   // the lane that has the turn, or nil
	waiting []*lane // in the order in which they asked
}

// take gives the turn to this lane if the turn is free, and reports whether the lane has it now. A lane that has to wait is woken
// when its turn comes.
func (t *largeTurn) take(l *lane) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.holder == nil {
		t.holder = l
	}
	if t.holder != l && !slices.Contains(t.waiting, l) {
		t.waiting = append(t.waiting, l)
	}
	return t.holder == l
}

// end passes this lane's turn to the lane that has waited longest. It does nothing if this lane does not have the turn.
func (t *largeTurn) end(l *lane) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.holder != l {
		return
	}
	if t.holder = nil; len(t.waiting) > 0 {
		t.holder = t.waiting[0]
		t.waiting = t.waiting[1:]
		t.holder.ask(0)
	}
}
