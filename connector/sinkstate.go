package connector

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// warnPace is the least time between two warnings about a sink that accepts some messages and fails others, for example because a
// partition is away.
const warnPace = 10 * time.Second

// observedSink is a sink whose state is shown, and where.
type observedSink struct {
	name    string
	inPlace bool // what fails waits in its lane: every failure holds something back
	health  *monitoring.Health
	metrics monitoring.SinkMetrics
	logger  *slog.Logger
}

// sinkState shows people how a sink does, once for all of its lanes: in the log, in /readyz and in metrics. The lanes, the breaker and the
// keeper's LISTEN call it, from their own goroutines.
type sinkState struct {
	observedSink

	mu      sync.Mutex
	failing map[int]struct{} // lanes whose last batch was not accepted
	warned  bool             // the log says that the sink does not accept
	warnAt  time.Time        // when the log may say so again
	cause   error            // the last failure
	breaker breakerState
	since   time.Time // when the breaker opened
	paused  bool
	owed    ledger.ParkedCount
	unread  error // why the parked rows cannot be read
}

func newSinkState(of observedSink) *sinkState {
	return &sinkState{observedSink: of, failing: map[int]struct{}{}}
}

// begin forgets what the lanes of the session before have reported.
func (s *sinkState) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.failing)
	s.unread = nil
	s.show()
}

// report notes how the last batch of a lane went; err is its last failure, or nil. A sink that refuses single messages, which are then
// parked, holds nobody back, so that it does not count as failing.
func (s *sinkState) report(lane, accepted int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := len(s.failing) > 0
	if err != nil {
		s.cause = err
	}
	if err == nil || !s.inPlace && (accepted > 0 || !errors.Is(err, sinks.ErrUnavailable)) {
		if !was {
			if err != nil && s.breaker != breakerClosed {
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

// breakerIs notes the state of the breaker, which calls it at each change.
func (s *sinkState) breakerIs(state breakerState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == breakerOpen && s.breaker != breakerHalfOpen {
		s.since = time.Now() // a failed probe opens the breaker again, but the outage began earlier
	}
	s.breaker = state
	if state == breakerClosed {
		clear(s.failing)
	}
	s.metrics.Breaker.Set(float64(state))
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

// counted notes what the sink has in outbox_parked.
func (s *sinkState) counted(o ledger.ParkedCount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed = o
	s.metrics.Parked.Set(float64(o.Parked))
	s.metrics.DeadLetters.Set(float64(o.Dead))
	s.metrics.OldestParked.Set(o.Oldest.Seconds())
	s.show()
}

// read notes how a read of the parked rows went.
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

// show puts the state into one sentence, for /readyz.
func (s *sinkState) show() {
	ok, text := true, ""
	switch {
	case s.unread != nil:
		ok, text = false, s.unread.Error()
	case s.breaker != breakerClosed:
		ok, text = false, fmt.Sprintf("left alone since %s (breaker %s; outbox-cdc retry %s asks at once): %v",
			s.since.UTC().Format(time.RFC3339), s.breaker, s.name, s.cause)
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
