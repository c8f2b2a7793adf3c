package connector

import (
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// stuckPlace is the place in the WAL at which the stream has ended sameOften times in a row with the same error. Each of the following
// sessions streams up to it, which may take a moment or minutes, and ends there. Without this, /readyz would say that all is well
// during each of them.
type stuckPlace struct {
	mu    sync.Mutex
	known bool
	at    pglogrepl.LSN
	why   string
	since time.Time // of the first error
}

// set notes the place and why the stream ends there.
func (s *stuckPlace) set(at pglogrepl.LSN, why string, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.at, s.why, s.since = true, at, why, since
}

// forget notes that the stream has ended elsewhere, or with another error.
func (s *stuckPlace) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = false
}

// reason returns why the stream ends, or nothing if no place is known.
func (s *stuckPlace) reason() (why string, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why, s.known
}

// passedBy forgets the place if everything beyond it is confirmed up to this LSN. It returns since when the place was known.
func (s *stuckPlace) passedBy(confirmed pglogrepl.LSN) (since time.Time, passed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known || confirmed <= s.at {
		return time.Time{}, false
	}
	s.known = false
	return s.since, true
}

// showPassed says that the stream works again once a session is past the place at which others have ended.
func (c *Connector) showPassed() {
	since, passed := c.stuck.passedBy(c.confirmed())
	if !passed {
		return
	}
	c.cfg.Health.Set("stream", monitoring.OK(""))
	c.lag.unreadSince.CompareAndSwap(since.UnixNano(), 0)
}
