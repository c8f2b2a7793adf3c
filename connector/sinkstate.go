package connector

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// warnPace is the least time between two warnings of a sink that accepts some and fails others, as one with a partition away does.
const warnPace = 10 * time.Second

// observedSink is a sink whose state is shown, and where.
type observedSink struct {
	name    string
	inPlace bool // what fails waits in its lane: every failure holds something back
	health  *monitoring.Health
	metrics monitoring.SinkMetrics
	logger  *slog.Logger
}

// sinkState tells people how a sink does: once for all of its lanes. Its lanes, its breaker and the keeper call it.
type sinkState struct {
	observedSink

	mu      sync.Mutex
	failing map[int]struct{} // lanes whose last batch was not accepted
	warned  bool             // the log says so
	warnAt  time.Time        // not before
	cause   error            // the last failure
	breaker gobreaker.State
	since   time.Time // of breaker
	paused  bool
	owed    ledger.ParkedCount
	unread  error // why the parked rows cannot be read
}

func newSinkState(of observedSink) *sinkState {
	return &sinkState{observedSink: of, failing: map[int]struct{}{}}
}

// begin is called for each new session.
func (s *sinkState) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.failing)
	s.unread = nil
	s.show()
}

// report tells how the last batch of a lane went: err is its last failure. While single messages are refused and the rest is
// parked, nobody is held back.
func (s *sinkState) report(lane, accepted int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := len(s.failing) > 0
	if err != nil {
		s.cause = err
	}
	if err == nil || !s.inPlace && (accepted > 0 || !errors.Is(err, sinks.ErrUnavailable)) {
		if !was {
			if err != nil && s.breaker != gobreaker.StateClosed {
				s.show() // this may be why
			}
			return
		}
		delete(s.failing, lane)
		if len(s.failing) == 0 {
			if s.warned {
				s.logger.Info("sink accepts again", "sink", s.name)
			}
			s.warned = false
			s.show()
		}
		return
	}
	s.failing[lane] = struct{}{}
	s.show()
	if now := time.Now(); !was && !now.Before(s.warnAt) {
		s.warned, s.warnAt = true, now.Add(warnPace)
		s.logger.Warn("sink does not accept", "sink", s.name, "lane", lane, "err", err)
	}
}

// breakerIs is called by the breaker at each change.
func (s *sinkState) breakerIs(state gobreaker.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == gobreaker.StateOpen && s.breaker != gobreaker.StateHalfOpen {
		s.since = time.Now() // a probe that failed does not begin it anew
	}
	s.breaker = state
	if state == gobreaker.StateClosed {
		clear(s.failing)
	}
	s.metrics.Breaker.Set(map[gobreaker.State]float64{gobreaker.StateHalfOpen: 1, gobreaker.StateOpen: 2}[state])
	s.show()
}

// isPaused notes whether a person has paused the sink.
func (s *sinkState) isPaused(activity ledger.Activity) {
	paused := activity == ledger.Paused
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case paused && !s.paused:
		s.logger.Info("sink paused", "sink", s.name)
	case !paused && s.paused:
		s.logger.Info("sink resumed", "sink", s.name)
	}
	s.paused = paused
	s.show()
}

// counted tells what waits for the sink.
func (s *sinkState) counted(o ledger.ParkedCount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed = o
	s.metrics.Parked.Set(float64(o.Parked))
	s.metrics.DeadLetters.Set(float64(o.Dead))
	s.metrics.OldestParked.Set(o.Oldest.Seconds())
	s.show()
}

// read tells how a read of the parked rows went.
func (s *sinkState) read(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if (err == nil) == (s.unread == nil) {
		return
	}
	if s.unread = err; err != nil {
		s.logger.Warn("parked rows cannot be read; trying again", "sink", s.name, "err", err)
	}
	s.show()
}

// show puts it into one sentence.
func (s *sinkState) show() {
	ok, text := true, ""
	switch {
	case s.unread != nil:
		ok, text = false, s.unread.Error()
	case s.breaker != gobreaker.StateClosed:
		ok, text = false, fmt.Sprintf("left alone since %s (breaker %s): %v", s.since.UTC().Format(time.RFC3339), s.breaker, s.cause)
	case len(s.failing) > 0:
		ok, text = false, s.cause.Error()
	case s.paused:
		text = "paused by a person; outbox-cdc resume goes on"
	}
	if s.owed.Parked > 0 {
		text += sep(text) + fmt.Sprintf("%d parked, the oldest %s ago", s.owed.Parked, s.owed.Oldest.Round(time.Second))
	}
	if s.owed.Dead > 0 {
		text += sep(text) + fmt.Sprintf("%d dead", s.owed.Dead)
	}
	s.health.Set("sink:"+s.name, monitoring.Component{OK: ok, Detail: text})
}

func sep(text string) string {
	if text == "" {
		return ""
	}
	return "; "
}
