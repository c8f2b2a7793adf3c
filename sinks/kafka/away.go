package kafka

import (
	"sync"
	"sync/atomic"
	"time"
)

// place is a partition, a topic as a whole, or the cluster as a whole, which has no topic.
type place struct {
	topic     string
	partition int32
}

const wholeTopic = -1

var wholeCluster = place{partition: wholeTopic}

// away remembers, for all lanes, the places that did not answer when they were last tried, and whose messages are ErrUnavailable:
// those of a sink with one topic, and those that failed when nothing of the cluster answered. If a sink with several topics finds
// a place away while the cluster answers, Sink.topics remembers it instead.
//
// A place that failed fast (no leader, connection refused) is tried again by every Deliver, but only once. So an
// election is waited for once, and not by every batch for as long as the partition is offline. A place that timed out
// is not tried at all for a while. Otherwise every batch would last as long as its deadline.
type away struct {
	count  atomic.Int32 // how many places; 0 if all answer
	mu     sync.Mutex
	places map[place]time.Time // until when the place is not tried
}

// set remembers that p did not answer, and must not be tried before until.
func (a *away) set(p place, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.places == nil {
		a.places = make(map[place]time.Time)
	}
	if old, ok := a.places[p]; !ok || until.After(old) { // another lane may have set a later time
		a.places[p] = until
	}
	a.count.Store(int32(len(a.places)))
}

// clear forgets p, because it has answered.
func (a *away) clear(p place) {
	if a.count.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.places, p)
	a.count.Store(int32(len(a.places)))
}

// known reports whether p did not answer when it was last tried.
func (a *away) known(p place) bool {
	_, ok := a.until(p)
	return ok
}

// resting reports whether p must not be tried yet.
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
