package router

import (
	"github.com/pyairtable-compose/outbox-cdc/internal/glob"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Route sends the events that match to sinks.
type Route struct {
	Match Match
	Sinks []Sink
}

// Match is a condition on an event. Each list that is not empty must contain a pattern that fits. The zero Match fits
// every event. In a pattern * stands for any characters and ? for one character. All other characters stand for
// themselves.
type Match struct {
	AggregateType, EventType, TenantID []string
}

// fits reports whether e satisfies the condition.
func (m *Match) fits(e *outbox.Event) bool {
	return fitsAny(m.AggregateType, e.AggregateType) && fitsAny(m.EventType, e.EventType) && fitsAny(m.TenantID, e.TenantID)
}

func fitsAny(patterns []string, s string) bool {
	for _, p := range patterns {
		if glob.Match(p, s) {
			return true
		}
	}
	return len(patterns) == 0
}
