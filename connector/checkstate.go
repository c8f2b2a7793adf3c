package connector

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// checkState is the part of a sink's state that its checks have found. The mutex of sinkState guards what is not atomic.
type checkState struct {
	unreachable string             // why the destination cannot be used; empty if it can, or if nobody knows
	since       time.Time          // since when that is so
	missing     []sinks.TopicCheck // the topics that cannot be used, although the destination can

	// Lanes use these for each Deliver, or each message, without the mutex.
	acceptedAt    atomic.Int64 // when the sink last accepted a message, in Unix nanoseconds; 0: not in this session
	isUnreachable atomic.Bool  // whether unreachable is not empty. It is set before acceptedAt is read: see acceptedSome
	someMissing   atomic.Bool  // whether missing is not empty
}

// checkResult is what one check has found.
type checkResult struct {
	began   time.Time
	err     error // why the destination cannot be used
	missing []sinks.TopicCheck
}

// needsCheck reports whether nothing but a check can show how the sink does: it has accepted nothing in this session, or a check or the
// breaker has found that something is away.
func (s *sinkState) needsCheck() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.check.acceptedAt.Load() == 0 || s.check.unreachable != "" || len(s.check.missing) > 0 || s.breaker != breakerClosed || s.membersAway != ""
}

// checked notes what a check has found.
func (s *sinkState) checked(r checkResult) {
	s.login.note(r.err)
	s.mu.Lock()
	c := &s.check
	was, told := s.checkStatus(), s.hasOutage()
	if r.err != nil {
		s.unreachable(r)
	} else {
		s.reachable()
		c.missing = r.missing
		c.someMissing.Store(len(r.missing) > 0)
	}
	now := s.checkStatus()
	if s.members != nil {
		s.showMembers()
	}
	s.show()
	s.mu.Unlock()
	if !told {
		s.logCheck(was, now)
	}
}

// unreachable notes a check that has failed, unless the sink has accepted a message since it began. The caller holds mu.
func (s *sinkState) unreachable(r checkResult) {
	c := &s.check
	c.isUnreachable.Store(true)
	if c.acceptedAt.Load() > r.began.UnixNano() {
		c.isUnreachable.Store(c.unreachable != "")
		return
	}
	if c.unreachable == "" {
		c.since = r.began
	}
	c.unreachable = errText(r.err)
}

// acceptedSome notes that the sink has accepted messages: its destination can be used. A check may fail at the same time. Each of the two
// writes first and then reads what the other writes, so that one of them notices: the sink does not stay unreachable.
func (s *sinkState) acceptedSome() {
	s.check.acceptedAt.Store(time.Now().UnixNano())
	if !s.check.isUnreachable.Load() {
		return
	}
	s.mu.Lock()
	was, told := s.checkStatus(), s.hasOutage()
	s.reachable()
	now := s.checkStatus()
	s.mu.Unlock()
	if !told {
		s.logCheck(was, now)
	}
}

// reachable notes that the destination has answered. The caller holds mu.
func (s *sinkState) reachable() {
	if s.check.unreachable != "" {
		s.check.unreachable, s.check.since = "", time.Time{}
		s.check.isUnreachable.Store(false)
		s.show()
	}
}

// isNotMissing notes that a topic has accepted a message, whatever a check has found.
func (s *sinkState) isNotMissing(topic string) {
	if !s.check.someMissing.Load() {
		return
	}
	s.mu.Lock()
	was := s.checkStatus()
	left := slices.DeleteFunc(slices.Clone(s.check.missing), func(c sinks.TopicCheck) bool { return c.Topic == topic })
	if len(left) < len(s.check.missing) {
		s.check.missing = left
		s.check.someMissing.Store(len(left) > 0)
		s.show()
	}
	now := s.checkStatus()
	s.mu.Unlock()
	s.logCheck(was, now)
}

// hasOutage reports whether the log tells of an outage: then it need not tell of checks as well. The caller holds mu.
func (s *sinkState) hasOutage() bool { return len(s.failing) > 0 || s.breaker != breakerClosed }

// checkStatus returns what Status shows of the checks. The caller holds mu.
func (s *sinkState) checkStatus() monitoring.CheckStatus {
	c := &s.check
	st := monitoring.CheckStatus{Unreachable: c.unreachable, Since: c.since}
	for _, m := range c.missing {
		st.Missing = append(st.Missing, missingTopic(m))
	}
	return st
}

// logCheck writes a line if something has changed: one when checks begin to find something wrong, and one when it is mended.
func (s *sinkState) logCheck(was, now monitoring.CheckStatus) {
	logger := s.logger.With("sink", s.name)
	switch {
	case was.Unreachable == "" && now.Unreachable != "":
		logger.Warn("sink is not reachable", "err", now.Unreachable)
	case was.Unreachable != "" && now.Unreachable == "":
		logger.Info("sink is reachable again", "after", time.Since(was.Since).Round(time.Millisecond).String())
	}
	before, after := topicNames(was), topicNames(now)
	switch {
	case len(after) > 0 && !containsAll(before, after):
		logger.Warn("topics of the sink cannot be used", "topics", strings.Join(after, " "), "err", now.Missing[0].String())
	case len(before) > 0 && len(after) == 0:
		logger.Info("all topics of the sink can be used again", "topics", strings.Join(before, " "))
	}
}

func topicNames(c monitoring.CheckStatus) (names []string) {
	for _, m := range c.Missing {
		names = append(names, m.Topic)
	}
	return names
}

func containsAll(all, some []string) bool {
	return !slices.ContainsFunc(some, func(name string) bool { return !slices.Contains(all, name) })
}
