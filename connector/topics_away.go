package connector

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// forgetTopic is how long after its last failure a topic counts as away. While events wait for a topic, one of them is tried at
	// least every topicPace. If none is, a person has taken the events away.
	forgetTopic = 4 * topicPace
	// maxTopicsAway bounds how many topics are remembered as away. The names of topics may come from events.
	maxTopicsAway = 1000
)

// topicsAway remembers which topics of a sink are away while its destination answers. Its names are not shown, because a topic's name may
// come from an event, or be a URL with a secret in it. The lanes call it. The zero value is ready.
type topicsAway struct {
	some atomic.Bool // whether there are any. Lanes ask it for each message that was accepted

	mu     sync.Mutex
	failed map[string]time.Time // the last failure, by topic
	since  time.Time
	cause  string // of the last failure
}

// fails notes that a topic was found away. It reports whether no other was.
func (t *topicsAway) fails(topic string, cause error) (first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.forget(now)
	if first = len(t.failed) == 0; first {
		t.since, t.failed = now, map[string]time.Time{}
		t.some.Store(true)
	}
	if _, known := t.failed[topic]; known || len(t.failed) < maxTopicsAway {
		t.failed[topic] = now
	}
	t.cause = errText(cause)
	return first
}

// answers notes that a topic has accepted something. It reports whether it was the last that was away.
func (t *topicsAway) answers(topic string) (last bool) {
	if !t.some.Load() {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.failed, topic)
	return t.tidy()
}

// postpone is called while the sink is left alone or paused, so that no failure shows that a topic is still away.
func (t *topicsAway) postpone() {
	if !t.some.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for topic := range t.failed {
		t.failed[topic] = time.Now()
	}
}

// status returns what Status shows.
func (t *topicsAway) status() monitoring.TopicsAway {
	if !t.some.Load() {
		return monitoring.TopicsAway{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(time.Now())
	return monitoring.TopicsAway{Count: len(t.failed), Since: t.since, Cause: t.cause}
}

// forget forgets topics that have not failed for long. The caller holds mu.
func (t *topicsAway) forget(now time.Time) {
	for topic, at := range t.failed {
		if now.Sub(at) > forgetTopic {
			delete(t.failed, topic)
		}
	}
	t.tidy()
}

// tidy reports whether no topic is away any more. The caller holds mu.
func (t *topicsAway) tidy() (none bool) {
	if none = len(t.failed) == 0; none {
		t.some.Store(false)
		t.since, t.cause, t.failed = time.Time{}, "", nil
	}
	return none
}

// topicIsAway notes that a topic was found away.
func (s *sinkState) topicIsAway(topic string, cause error) {
	if s.topics.fails(topic, cause) {
		s.showAgain()
	}
}

// topicAccepts notes that a topic has accepted a message. A lane calls it for each message, which costs three loads unless a topic is
// away or missing, or a message was refused.
func (s *sinkState) topicAccepts(topic string) {
	s.isNotMissing(topic)
	if s.topics.answers(topic) {
		s.showAgain()
	}
	if s.refusals.end() {
		s.showAgain()
	}
}
