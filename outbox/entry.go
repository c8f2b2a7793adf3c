package outbox

import (
	"encoding/json"
	"time"
)

// OutboxEntry is an event as custom publishers get it: with its metadata decoded. See sinks/publisher.
type OutboxEntry struct { //nolint:revive // the platform's name for it
	ID            string
	AggregateType string
	AggregateID   string
	EventType     string
	EventVersion  int
	// Payload is the bytes that were committed. Do not change them.
	Payload json.RawMessage
	// Metadata is nil where the event has none, or none that is a JSON object. Numbers are json.Number.
	Metadata      map[string]any
	CreatedAt     time.Time
	TenantID      string
	CorrelationID string
	CausationID   string
	// RetryCount is how often this entry was given to the publisher before.
	RetryCount int
}
