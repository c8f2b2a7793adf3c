package connector

import (
	"slices"
	"sync"
)

// largeTurn is whose turn it is, among a sink's lanes, to hold a parked row that is larger than an ordinary read. What a lane reads of
// the table is in memory outside of the window. Without turns each lane could hold a row of max_event_bytes, twice while it reads it.
// Each sink has its own, so that no sink waits for another. Lanes have their turns in the order in which they ask: one whose
// row is never answered does not keep the others out. The zero value is ready for use by all lanes.
type largeTurn struct {
	mu      sync.Mutex
	holder  *lane
	waiting []*lane
}

// take says whether it is this lane's turn. If not, the lane is asked to look again when it is.
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

// end ends this lane's turn, if it has it.
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
