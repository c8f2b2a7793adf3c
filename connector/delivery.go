package connector

import (
	"encoding/json"
	"time"
	"unsafe"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// delivery is one event for one sink. It belongs to the reader until it is handed to a lane, then to that lane.
type delivery struct {
	sinks.Message
	hash     int64
	entry    uint64 // its event in the tracker
	attempts int    // tries that were refused
	tries    int    // all tries
	triedAt  time.Time
}

// deliverySize is what a delivery takes until it is settled, its outcome included. With it max_in_flight_bytes is true.
const deliverySize = int(unsafe.Sizeof(delivery{}) + unsafe.Sizeof(checkpoint.Outcome{}))

func (d *delivery) position() checkpoint.Position {
	return checkpoint.Position{LSN: d.LSN, Index: d.Index}
}

// deadLetter keeps of the event all that a person needs to look at it and to send it again.
func (d *delivery) deadLetter() *checkpoint.DeadLetter {
	return &checkpoint.DeadLetter{
		AggregateHash: d.hash, Attempts: d.attempts, Tries: d.tries, TriedAt: d.triedAt,
		Event: eventJSON(d.Event), Payload: d.Event.Payload,
	}
}

// eventJSON is an event without its payload, as outbox_parked keeps it.
func eventJSON(e *outbox.Event) []byte {
	row := struct {
		ID            string          `json:"id,omitempty"`
		AggregateType string          `json:"aggregate_type,omitempty"`
		AggregateID   string          `json:"aggregate_id,omitempty"`
		EventType     string          `json:"event_type,omitempty"`
		EventVersion  int             `json:"event_version,omitempty"`
		Metadata      json.RawMessage `json:"metadata,omitempty"`
		CreatedAt     *time.Time      `json:"created_at,omitempty"`
		MaxRetries    *int            `json:"max_retries,omitempty"`
		TenantID      string          `json:"tenant_id,omitempty"`
		CorrelationID string          `json:"correlation_id,omitempty"`
		CausationID   string          `json:"causation_id,omitempty"`
	}{
		e.ID, e.AggregateType, e.AggregateID, e.EventType, e.EventVersion, e.Metadata, nil, e.MaxRetries,
		e.TenantID, e.CorrelationID, e.CausationID,
	}
	if y := e.CreatedAt.Year(); y > 0 && y < 10000 && !e.CreatedAt.IsZero() { // what JSON can hold
		row.CreatedAt = &e.CreatedAt
	}
	if !json.Valid(row.Metadata) { // a mapped text column may hold anything
		row.Metadata = nil
		if len(e.Metadata) > 0 {
			row.Metadata, _ = json.Marshal(string(e.Metadata)) // a string never fails
		}
	}
	b, err := json.Marshal(row)
	if err != nil {
		panic("an event's columns are always JSON: " + err.Error())
	}
	return b
}
