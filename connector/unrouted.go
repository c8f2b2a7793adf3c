package connector

import (
	"log/slog"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// unroutedEvery is the least time between two log lines about events that no route matches.
const unroutedEvery = time.Minute

// unroutedLog counts the events that no route matches, and writes one log line about them a minute, because a line for each
// event would flood the log. The reader calls add, the keeper calls report. The Connector owns it and not a session, so that
// sessions that fail one after the other do not write more lines. The zero value is ready.
type unroutedLog struct {
	mu            sync.Mutex
	count         int       // since the last report
	aggregateType string    // of the first event since the last report
	eventType     string    // likewise
	next          time.Time // of the next report, at the earliest
}

// add counts one event. The types of the first event since the last report stand in the next report as an example.
func (u *unroutedLog) add(e *outbox.Event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.count == 0 {
		u.aggregateType, u.eventType = e.AggregateType, e.EventType
	}
	u.count++
}

// report logs what was counted since the last report, unless that was less than a minute ago.
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
