package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// DomainEvent is an event as a service's domain has it. A service that has such an interface of its own moves with one
// line, type DomainEvent = outbox.DomainEvent, if its methods are these; else a type that embeds its event and has them
// adapts it. Events that are rows already, of type Event, are passed by DomainEvents.
//
// An event may also have TenantID, CorrelationID or CausationID, each func() string: then the columns are set.
type DomainEvent interface {
	// EventID is a uuid, or empty: Insert makes one then. An event that has one of its own is refused the second time.
	EventID() string
	AggregateType() string
	AggregateID() string
	// EventType is what happened, such as "user.registered".
	EventType() string
	// EventVersion is the version of the payload's schema, not that of the aggregate; 0 means 1.
	EventVersion() int
	// Payload is written as encoding/json does it; []byte and json.RawMessage are JSON already and kept as they are.
	Payload() any
	// Metadata is written in the same way, nil as {}.
	Metadata() map[string]any
	// OccurredAt becomes CreatedAt; zero leaves it to the database.
	OccurredAt() time.Time
}

// DomainEvents passes rows where domain events are wanted. They are written as Insert writes them.
func DomainEvents(events ...Event) []DomainEvent {
	list := make([]DomainEvent, len(events))
	for i, e := range events {
		list[i] = row{e}
	}
	return list
}

// EventsOf makes rows of domain events, for Insert with a pgx.Tx. What cannot be written as JSON is reported at once,
// each mistake by the event's index and the field; all else is checked by Insert.
func EventsOf(list []DomainEvent) ([]Event, error) {
	events := make([]Event, len(list))
	var mistakes []error
	for i, e := range list {
		var err error
		if events[i], err = eventOf(e); err != nil {
			mistakes = append(mistakes, fmt.Errorf("events[%d]%w", i, err))
		}
	}
	return events, errors.Join(mistakes...)
}

func eventOf(d DomainEvent) (Event, error) {
	switch d := d.(type) {
	case nil:
		return Event{}, errors.New(" is nil")
	case row:
		return d.event, nil
	}
	e := Event{
		ID:            d.EventID(),
		AggregateType: d.AggregateType(),
		AggregateID:   d.AggregateID(),
		EventType:     d.EventType(),
		EventVersion:  d.EventVersion(),
		CreatedAt:     d.OccurredAt(),
	}
	if d, ok := d.(interface{ TenantID() string }); ok {
		e.TenantID = d.TenantID()
	}
	if d, ok := d.(interface{ CorrelationID() string }); ok {
		e.CorrelationID = d.CorrelationID()
	}
	if d, ok := d.(interface{ CausationID() string }); ok {
		e.CausationID = d.CausationID()
	}
	var err error
	switch p := d.Payload().(type) {
	case []byte:
		e.Payload = p
	case json.RawMessage:
		e.Payload = p
	default:
		if e.Payload, err = json.Marshal(p); err != nil {
			return Event{}, fmt.Errorf(".Payload: %w", err)
		}
	}
	if m := d.Metadata(); m != nil {
		if e.Metadata, err = json.Marshal(m); err != nil {
			return Event{}, fmt.Errorf(".Metadata: %w", err)
		}
	}
	return e, nil
}

// row is an Event as a DomainEvent. (Its fields have the names that the methods would need.)
type row struct{ event Event }

func (r row) EventID() string       { return r.event.ID }
func (r row) AggregateType() string { return r.event.AggregateType }
func (r row) AggregateID() string   { return r.event.AggregateID }
func (r row) EventType() string     { return r.event.EventType }
func (r row) EventVersion() int     { return r.event.EventVersion }
func (r row) Payload() any          { return r.event.Payload }
func (r row) OccurredAt() time.Time { return r.event.CreatedAt }
func (r row) TenantID() string      { return r.event.TenantID }
func (r row) CorrelationID() string { return r.event.CorrelationID }
func (r row) CausationID() string   { return r.event.CausationID }

func (r row) Metadata() (m map[string]any) {
	_ = json.Unmarshal(r.event.Metadata, &m) // what is no object has none to show; Insert refuses it
	return m
}
