// Package outbox is the producer's side of outbox-cdc and its vocabulary: the Event, and Insert, which writes events
// within the caller's transaction. It knows nothing of delivery and imports pgx and uuid beside the standard library,
// so that a service pays for nothing else.
package outbox

import (
	"encoding/json"
	"time"
)

// Event is one row of the outbox: something that happened to an aggregate, told once and never changed.
//
// Payload and Metadata are opaque: the bytes that were committed are the bytes that are delivered. An Event that
// came from the stream is shared by all its deliveries and must not be changed.
type Event struct {
	// ID is what consumers deduplicate on, the same on every transport and every attempt. Insert makes one where it is
	// empty: see NewID.
	ID string
	// AggregateType and AggregateID together name the aggregate, the unit of order.
	AggregateType string
	AggregateID   string
	EventType     string
	// EventVersion is the version of the payload's schema. Insert writes 1 for 0. An event that came from the stream has 0 if its
	// table has no such column, or NULL in it. Sinks send no version then.
	EventVersion int
	// Payload is nil where the column is NULL (a mapped table may allow it).
	Payload []byte
	// ContentType is the media type of the payload that the type of its column stands for. It is empty for json and jsonb, which are
	// application/json. The stream sets it; Insert does not write it. The key content_type of the metadata says more of a payload.
	ContentType string
	// Metadata is a JSON object, or empty. What a mapped column of text holds is passed on whatever it is.
	Metadata json.RawMessage
	// CreatedAt is the time of the insert, as the producer or the database wrote it; zero leaves it to the database.
	CreatedAt time.Time
	// MaxRetries is the number of retries after the first attempt; nil leaves it to the sink's configuration.
	MaxRetries *int
	// Empty means NULL in the three below: such a header is left out, never sent empty.
	TenantID      string
	CorrelationID string
	CausationID   string
}
