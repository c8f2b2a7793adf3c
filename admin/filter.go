package admin

import (
	"strconv"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/glob"
)

// Filter selects events. An event has to satisfy every field that is set. The zero Filter selects all.
type Filter struct {
	// Sinks by name. "none" stands for what belongs to no sink.
	Sinks []string
	// Type of the event, with * and ? as in routes.
	Type string
	// Aggregate is type/id, or the type alone.
	Aggregate string
	Tenant    string
	// Error is a part of the error message, in upper or lower case.
	Error string
	// Since (inclusive) and Until (exclusive) bound the time of the row. Which time that is depends on the list: when a row
	// was parked, when a try was completed, or when an event was created.
	Since, Until time.Time
	IDs          []string
}

// Empty reports whether the filter selects all.
func (f Filter) Empty() bool {
	return len(f.Sinks) == 0 && f.Type == "" && f.Aggregate == "" && f.Tenant == "" && f.Error == "" && f.Since.IsZero() && f.Until.IsZero() && len(f.IDs) == 0
}

// String lists the fields that are set, for an error message.
func (f Filter) String() string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+" "+strconv.Quote(value))
		}
	}
	add("sink", strings.Join(f.Sinks, ", "))
	add("type", f.Type)
	add("aggregate", f.Aggregate)
	add("tenant", f.Tenant)
	add("error", f.Error)
	if !f.Since.IsZero() {
		add("since", f.Since.UTC().Format(time.RFC3339))
	}
	if !f.Until.IsZero() {
		add("until", f.Until.UTC().Format(time.RFC3339))
	}
	add("id", strings.Join(f.IDs, ", "))
	return strings.Join(parts, ", ")
}

// matches compares the fields that stand in the event itself. SQL cannot do this: a metadata column of type json may hold
// text that the operator ->> refuses.
func (f Filter) matches(eventType, aggregateType, aggregateID, tenant string) bool {
	if f.Type != "" && !glob.Match(f.Type, eventType) || f.Tenant != "" && f.Tenant != tenant {
		return false
	}
	typ, id, both := strings.Cut(f.Aggregate, "/")
	return f.Aggregate == "" || typ == aggregateType && (!both || id == aggregateID)
}
