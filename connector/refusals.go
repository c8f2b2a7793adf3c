package connector

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// refusalsInRow is how many messages a sink has to refuse, with nothing accepted in between, before it counts as one that refuses everything.
// It is the number of deaths that make a sink suspect, which comes later: each message is tried several times before it dies.
const refusalsInRow = deathBudget

// refusals remembers which messages a sink has refused since it last accepted one. It counts each message once, so that a single message
// that is tried again and again says nothing of the others. The lanes call it. The zero value is ready.
type refusals struct {
	some atomic.Bool // whether there are any. Lanes ask it for each message that was accepted

	mu    sync.Mutex
	seen  map[checkpoint.Position]struct{} // refusalsInRow at most
	since time.Time                        // when the first of them was refused
}

// add notes a message that was refused. It reports whether the sink refuses everything from now on.
func (r *refusals) add(p checkpoint.Position) (begins bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) == refusalsInRow {
		return false
	}
	if r.seen == nil {
		r.seen, r.since = map[checkpoint.Position]struct{}{}, time.Now()
		r.some.Store(true)
	}
	r.seen[p] = struct{}{}
	return len(r.seen) == refusalsInRow
}

// end notes that the sink has accepted a message. It reports whether the sink has refused everything until now.
func (r *refusals) end() (ends bool) {
	if !r.some.Load() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ends = len(r.seen) == refusalsInRow
	r.seen, r.since = nil, time.Time{}
	r.some.Store(false)
	return ends
}

// refusingSince returns since when the sink refuses everything, or zero if it does not.
func (r *refusals) refusingSince() time.Time {
	if !r.some.Load() {
		return time.Time{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) < refusalsInRow {
		return time.Time{}
	}
	return r.since
}

// refused notes that the sink has refused a message.
func (s *sinkState) refused(p checkpoint.Position) {
	if s.refusals.add(p) {
		s.showAgain()
	}
}
