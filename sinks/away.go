package sinks

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// firstAway is for how long a topic that was found away is not asked again. The time doubles, up to LongestAway.
	firstAway = time.Second
	// LongestAway is the longest time for which a topic that is away is not asked again.
	LongestAway = 30 * time.Second
	// maxAway is how many topics are remembered. The names of topics may come from events, so there may be any number.
	maxAway = 10_000
)

// Away remembers what was found away: topics, or the partitions of topics. Without it, topics that never answer would fill
// each Deliver with their time-outs, and other topics would wait for them. K names a topic.
//
// All lanes of a sink share it. The zero value is ready, and is safe for use by several goroutines.
type Away[K comparable] struct {
	count  atomic.Int32 // of topics; most sinks always have 0, and then nothing is locked
	mu     sync.Mutex
	topics map[K]awayTopic
}

type awayTopic struct {
	until time.Time     // not asked before
	wait  time.Duration // for how long it was not asked the last time
	asked time.Time     // when the message was sent that asks, and was not answered yet (Ask); zero if there is none
}

// Found notes that a topic was found away at this time. Several lanes may find out at the same time; that counts once.
func (a *Away[K]) Found(topic K, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, known := a.topics[topic]
	switch {
	case known && now.Before(t.until) && t.asked.IsZero():
		return
	case !known && len(a.topics) >= maxAway:
		a.forget(now)
		if len(a.topics) >= maxAway {
			return
		}
	}
	if a.topics == nil {
		a.topics = map[K]awayTopic{}
	}
	wait := max(min(2*t.wait, LongestAway), firstAway)
	a.topics[topic] = awayTopic{until: now.Add(wait), wait: wait}
	a.count.Store(int32(len(a.topics)))
}

// forget forgets the topics that may be asked again. mu is held.
func (a *Away[K]) forget(now time.Time) {
	for topic, t := range a.topics {
		if !now.Before(t.until) {
			delete(a.topics, topic)
		}
	}
	a.count.Store(int32(len(a.topics)))
}

// Answered forgets a topic, because it has accepted or refused a message.
func (a *Away[K]) Answered(topic K) {
	if a.count.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.topics, topic)
	a.count.Store(int32(len(a.topics)))
}

// AskNow makes all topics that were found away be asked at their next message, because a person wants to know.
func (a *Away[K]) AskNow() {
	if a.count.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for topic, t := range a.topics {
		a.topics[topic] = awayTopic{wait: t.wait}
	}
}

// Wait returns for how long the topic must not be asked: 0 if it may be asked now.
func (a *Away[K]) Wait(topic K, now time.Time) time.Duration {
	if a.count.Load() == 0 {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.topics[topic].left(now)
}

// left returns for how long the topic must not be asked.
func (t awayTopic) left(now time.Time) time.Duration {
	if !now.Before(t.until) {
		return 0
	}
	if t.asked.IsZero() {
		return t.until.Sub(now)
	}
	// The longer there is no answer, the less likely one comes soon. Most come at once.
	return min(max(now.Sub(t.asked), firstAway), LongestAway)
}

// Ask is Wait for a sink that sends each message by itself. If it returns 0, the caller sends its message, and then calls
// Found or Answered, or neither if it has learnt nothing. Of a topic that was found away, one message is sent at a time: until
// it is answered, or until deadline, others have to wait. So a topic that never answers takes up one connection.
func (a *Away[K]) Ask(topic K, now, deadline time.Time) time.Duration {
	if a.count.Load() == 0 {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t, known := a.topics[topic]
	left := t.left(now)
	if known && left == 0 {
		t.asked, t.until = now, deadline
		a.topics[topic] = t
	}
	return left
}

// Known reports whether a topic was found away, and has neither accepted nor refused a message since then. If so, rested is for
// how long it was not asked the last time.
func (a *Away[K]) Known(topic K) (rested time.Duration, known bool) {
	if a.count.Load() == 0 {
		return 0, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t, known := a.topics[topic]
	return t.wait, known
}

// PutOff returns the error of a message whose topic is known to be away, and may be asked again after this time.
func PutOff(wait time.Duration) error { return After(wait, errPutOff) }
