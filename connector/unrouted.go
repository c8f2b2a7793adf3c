package connector

import (
	"log/slog"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// unroutedEvery is how often the log tells of events that no route matches, at most.
const unroutedEvery = time.Minute

// unroutedLog counts the events that no route matches, and tells the log of them once a minute: one line an event would
// flood it. The reader adds, the keeper reports. It outlives sessions, so that a session that fails again and again does
// not tell more often. The zero value is ready.
type unroutedLog struct {
	mu            sync.Mutex
	count         int // since the last report
	aggregateType string
	eventType     string
	next          time.Time // when the log may be told again
}

// add counts one event. Its types become the example of the next report if it is the first.
func (u *unroutedLog) add(e *outbox.Event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.count == 0 {
		u.aggregateType, u.eventType = e.AggregateType, e.EventType
	}
	u.count++
}

// report tells of what was counted, unless it has told within the last minute.
func (u *unroutedLog) report(now time.Time, logger *slog.Logger) {
	u.mu.Lock()
	count, aggregateType, eventType := u.count, u.aggregateType, u.eventType
	due := count > 0 && !now.Before(u.next)
	if due {
		u.count, u.next = 0, now.Add(unroutedEvery)
	}
	u.mu.Unlock()
	if due {
		logger.Warn("no route matches these events: they are recorded as discarded; \"outbox-cdc route test\" shows where an event goes",
			"events", count, "aggregate_type", aggregateType, "event_type", eventType)
	}
}
