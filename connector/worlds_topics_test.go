package connector

import (
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// worldTopic is what one topic of a sink does.
type worldTopic struct {
	away    bool
	hangs   bool   // if it is away, it does not answer
	back    moment // when it last came back
	trouble bool   // it has been away
}

var (
	errWorldTopic     = fmt.Errorf("404: %w", sinks.ErrTopicUnavailable)
	errWorldTopicHang = fmt.Errorf("its topic gives no answer: %w", sinks.ErrTopicUnavailable)
)

// eventType is a type that names the sinks, which routes match, and the topic.
func (e *worldEvent) eventType() string {
	kind := []byte("000")
	for _, s := range e.sinks {
		kind[2-s] = '1'
	}
	return fmt.Sprintf("%s.%d", kind, e.topic)
}

// planTopics lets topics go away and come back.
func (s *worldSink) planTopics() {
	cfg := &s.w.cfg
	for n := range s.topics {
		r := s.w.random("topic", s.n, n)
		if cfg.topics < 2 || !r.chance(cfg.topicTrouble) {
			continue
		}
		var goes, comes func()
		comes = func() {
			s.topicComes(n)
			s.w.after(r.between(10*timeUnit, 700*timeUnit), goes)
		}
		goes = func() {
			s.topicGoes(n, worldTopic{away: true, hangs: cfg.topicHangs && r.chance(0.5), trouble: true})
			if !r.chance(0.3) { // else until all heals
				s.w.after(r.between(20*timeUnit, 1500*timeUnit), comes)
			}
		}
		s.w.after(r.between(0, 300*timeUnit), goes)
	}
}

func (s *worldSink) topicGoes(n int, to worldTopic) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if !s.w.faults {
		return
	}
	to.back = s.topics[n].back
	s.topics[n] = to
	s.w.trace("topic %d of sink%d goes away, hangs: %t", n, s.n, to.hangs)
}

func (s *worldSink) topicComes(n int) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if t := &s.topics[n]; t.away {
		t.away, t.back = false, s.inTime.now()
		s.w.trace("topic %d of sink%d is back", n, s.n)
	}
}

// rested is what a client remembers of topics that it found away, as sinks.Away does.
type rested struct {
	until map[int]time.Time
	times map[int]int
}

// putOff returns for how long a topic is not asked again.
func (k *rested) putOff(topic int) time.Duration { return time.Until(k.until[topic]) }

// learn notes which topics a call has found away, when it ends.
func (k *rested) learn(away map[int]bool, accepted []*worldEvent) {
	for t := range away {
		k.until[t] = time.Now().Add(min(time.Second<<k.times[t], sinks.LongestAway))
		k.times[t] = min(k.times[t]+1, 9)
	}
	for _, e := range accepted {
		if !away[e.topic] {
			delete(k.times, e.topic)
			delete(k.until, e.topic)
		}
	}
}
