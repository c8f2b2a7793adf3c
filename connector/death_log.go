package connector

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// deathLines is how many dead letters of a sink have a line of their own in the log within deathSpan. The others are counted in one
	// line at its end.
	deathLines = 20
	deathSpan  = time.Minute
)

// deadLetter is what the log says of a dead letter. It has nothing of the payload.
type deadLetter struct {
	eventID, eventType, aggregateType string
	attempt                           int
	cause                             error
}

// deathLog tells the log of the dead letters of a sink, or of those of no sink. The zero value is ready.
type deathLog struct {
	wake bells // wakes outageLog, which writes the sums

	mu    sync.Mutex
	ends  time.Time // of the running span; zero: none runs
	lines int       // in the running span
	more  int       // letters without a line
	first deadLetter
}

// add notes a dead letter, and reports whether it has a line of its own, which the caller writes. It reports false for one that is only
// counted.
func (l *deathLog) add(d deadLetter, now time.Time) (line bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more == 0 && !now.Before(l.ends) {
		l.ends, l.lines = now.Add(deathSpan), 0
	}
	if l.lines < deathLines {
		l.lines++
		return true
	}
	if l.more == 0 {
		l.first = d
	}
	l.more++
	l.wake.ring()
	return false
}

// counting reports whether letters are counted that the log does not have yet.
func (l *deathLog) counting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.more > 0
}

// report writes the line about letters that were only counted, once the span has ended. now may be after it to have the line at once.
func (l *deathLog) report(now time.Time, logger *slog.Logger) {
	l.mu.Lock()
	more, first := l.more, l.first
	due := more > 0 && !now.Before(l.ends)
	if due {
		l.more, l.lines = 0, 0
		l.ends = now.Add(deathSpan)
		l.first = deadLetter{}
	}
	l.mu.Unlock()
	if due {
		logger.Error("more dead letters", "events", more, "event_id", first.eventID, "event_type", first.eventType,
			"aggregate_type", first.aggregateType, "err", first.cause)
	}
}

// died writes the line of a dead letter, or counts it.
func (s *sinkState) died(d deadLetter) {
	if s.dead.add(d, time.Now()) {
		d.log(s.logger.With("sink", s.name))
	}
}

func (d deadLetter) log(logger *slog.Logger) {
	if d.attempt > 0 { // 0: no sink was asked
		logger = logger.With("attempt", d.attempt)
	}
	logger.Error("dead letter", "event_id", d.eventID, "event_type", d.eventType, "aggregate_type", d.aggregateType, "err", d.cause)
}
