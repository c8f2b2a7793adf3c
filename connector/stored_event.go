package connector

import (
	"encoding/json"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// storedEvent returns the part of an event that outbox_parked keeps beside the payload. committed is the commit time of the
// event's transaction.
func storedEvent(e *outbox.Event, committed time.Time) ledger.StoredEvent {
	return ledger.StoredEvent{
		ID: e.ID, AggregateType: e.AggregateType, AggregateID: e.AggregateID, EventType: e.EventType, EventVersion: e.EventVersion,
		ContentType: e.ContentType, CreatedAt: &e.CreatedAt, CommittedAt: &committed, MaxRetries: e.MaxRetries,
		TenantID: e.TenantID, CorrelationID: e.CorrelationID, CausationID: e.CausationID, Metadata: e.Metadata,
	}
}

// eventOf returns the event of a parked row and the commit time of the event's transaction. It is the inverse of storedEvent. The
// row may lack either time: the event's CreatedAt or the commit time is then zero.
func eventOf(row *ledger.ParkedDelivery) (*outbox.Event, time.Time) {
	s := &row.Event
	e := &outbox.Event{
		ID: s.ID, AggregateType: s.AggregateType, AggregateID: s.AggregateID, EventType: s.EventType, EventVersion: s.EventVersion,
		ContentType: s.ContentType, Payload: row.Payload, Metadata: s.Metadata, MaxRetries: s.MaxRetries,
		TenantID: s.TenantID, CorrelationID: s.CorrelationID, CausationID: s.CausationID,
	}
	if row.EventID != "" {
		e.ID = row.EventID
	}
	if s.MetadataText != nil {
		e.Metadata = json.RawMessage(*s.MetadataText)
	}
	if s.CreatedAt != nil {
		e.CreatedAt = *s.CreatedAt
	}
	var committed time.Time
	if s.CommittedAt != nil {
		committed = *s.CommittedAt
	}
	return e, committed
}
