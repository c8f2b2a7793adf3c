package connector

import "sync"

// largeTurn is whose turn it is, among a sink's lanes, to hold parked rows that are larger than an ordinary read. A lane that catches
// up has nothing but these in memory, outside of the window, and without turns each lane could hold a row of max_event_bytes, twice
// while it is read. It is a sink's own: sinks do not wait for each other. The zero value is ready for use by all lanes.
type largeTurn struct {
	mu      sync.Mutex
	holder  *lane
	waiting []*lane
}

// take says whether it is this lane's turn now. If not, the lane is asked to look again when the turn ends.
func (t *largeTurn) take(l *lane) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.holder == nil {
		t.holder = l
	}
	if t.holder != l {
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
	t.holder = nil
	for _, other := range t.waiting {
		other.ask(0)
	}
	t.waiting = nil
}
