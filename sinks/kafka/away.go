package kafka

import (
	"sync"
	"sync/atomic"
	"time"
)

// place is a partition; with partition −1 and no topic the cluster as a whole.
type place struct {
	topic     string
	partition int32
}

var cluster = place{partition: -1}

// away remembers, for all lanes, what did not answer when it was last tried.
//
// What failed fast (no leader, connection refused) is tried again by every Deliver, but without patience: an election
// is waited for once, not by every batch for as long as a partition is offline. What timed out is not tried at all for
// a while, or it would make every batch last as long as its deadline.
type away struct {
	count  atomic.Int32 // of places: 0 when all is well
	mu     sync.Mutex
	places map[place]time.Time // until when it is not tried
}

// set remembers p, which is not to be tried before until.
func (a *away) set(p place, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.places == nil {
		a.places = make(map[place]time.Time)
	}
	if old, ok := a.places[p]; !ok || until.After(old) { // another lane may have met a time-out
		a.places[p] = until
	}
	a.count.Store(int32(len(a.places)))
}

// clear forgets p: it has answered.
func (a *away) clear(p place) {
	if a.count.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.places, p)
	a.count.Store(int32(len(a.places)))
}

// known tells whether p was away at its last try.
func (a *away) known(p place) bool {
	_, ok := a.until(p)
	return ok
}

// resting tells whether p is not to be tried yet.
func (a *away) resting(p place) bool {
	until, ok := a.until(p)
	return ok && time.Now().Before(until)
}

func (a *away) until(p place) (time.Time, bool) {
	if a.count.Load() == 0 {
		return time.Time{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	until, ok := a.places[p]
	return until, ok
}
