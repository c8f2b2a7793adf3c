package connector

import (
	"errors"
	"slices"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// recovery is what a calm world notes of the outage of a sink. By it the world sees that the sink is asked as often as it must be, and that
// what has waited only for the sink is tried soon after it has answered.
type recovery struct {
	calls  int       // that are under way
	asked  time.Time // when the last call ended that has tried something
	back   moment    // when the sink first answered after its outage
	waited int       // messages that it had not accepted then
}

const (
	// askedAllowed is how much longer than reset_timeout a sink that is away may have to wait for the next call: for the turn of the lane
	// that has something to ask with, for its read of the table, and for the COMMIT before that.
	askedAllowed = 3 * time.Second
	// recoveryAllowed is what it takes until a lane tries the first message after the sink has answered.
	recoveryAllowed = 5 * time.Second
)

// recovers reports whether the world checks how often this sink is asked, and what it is given after its outage. Of several topics
// some may be away as well, and a sink that is tried once keeps nothing.
func (s *worldSink) recovers() bool { return s.w.cfg.calm && s.w.cfg.topics == 1 && !s.oneTry }

// waiting returns how many messages wait only for the sink, because it was away when they were tried, and how many it has not accepted in
// all. The world's lock is held.
func (s *worldSink) waiting() (onlyForIt, all int) {
	for _, e := range s.w.events {
		if e.pos.LSN == 0 || !slices.Contains(e.sinks, s.n) {
			continue
		}
		t := s.rules.events[e]
		switch {
		case t == nil || t.asked == 0:
			all++
		case t.last != nil:
			all++
			if classOf(t.last) == away {
				onlyForIt++
			}
		}
	}
	return onlyForIt, all
}

// watchRecovery looks every second whether the sink was asked in time, from the beginning of its outage until all that waited for it was
// tried.
func (s *worldSink) watchRecovery() {
	if !s.recovers() {
		return
	}
	var look func()
	look = func() {
		if s.recovered() {
			return
		}
		s.w.after(time.Second, look)
	}
	look()
}

// recovered checks the sink, and reports whether there is no more to check.
func (s *worldSink) recovered() bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	r := &s.recovery
	waits, _ := s.waiting()
	if waits == 0 {
		return !r.back.at.IsZero()
	}
	if late := time.Since(r.asked) - s.w.cfg.reset - askedAllowed; r.calls == 0 && late > 0 {
		s.w.violation("not asked", "sink%d was not asked for %s, while %d messages wait for it", s.n, time.Since(r.asked), waits)
		return true
	}
	if r.back.at.IsZero() {
		return false
	}
	allowed := recoveryAllowed + time.Duration(r.waited+s.inTime.firsts-r.back.firsts)*s.aTry()
	if late := time.Since(r.back.at) - allowed; late > 0 {
		s.w.violation("still waits", "sink%d has answered %s ago, and %d messages that waited only for it were not tried yet; %s are allowed",
			s.n, time.Since(r.back.at), waits, allowed)
		return true
	}
	return false
}

// aTry is what a message may take up of a lane's time.
func (s *worldSink) aTry() time.Duration {
	if s.w.cfg.quick {
		return aQuickTryAllowed
	}
	return 2 * aTryAllowed // with the read and the COMMIT around a call of one message
}

// noteCall notes that a call ends with these results. The world's lock is held.
func (s *worldClient) noteCall(p *worldCall) {
	r := &s.recovery
	r.calls--
	tried, answers := false, false
	for _, err := range p.errs {
		tried = tried || !errors.Is(err, sinks.ErrNotAttempted)
		class := classOf(err)
		answers = answers || class != away && class != notAttempted
	}
	if tried {
		r.asked = time.Now()
	}
	if answers && s.mode == modeWell && !s.inTime.up.at.IsZero() && !p.began.Before(s.inTime.up.at) && r.back.at.IsZero() {
		r.back = s.inTime.now()
		_, r.waited = s.waiting()
	}
	if answers && !p.probe && s.mine.breaker != breakerClosed {
		s.mine.allowed++ // this answer to a call from before it opened makes the breaker ask
	}
}
