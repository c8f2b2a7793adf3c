package service

import (
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/eventbus"
	"github.com/pyairtable-compose/outbox-cdc/sinks/publisher"
)

// Names of the packages outbox and sinks. With them a service that embeds the connector needs to import only this package, as
// outbox.
type (
	// OutboxEntry is outbox.OutboxEntry.
	OutboxEntry = outbox.OutboxEntry
	// DomainEvent is outbox.DomainEvent.
	DomainEvent = outbox.DomainEvent
	// Wrapper is outbox.Wrapper.
	Wrapper = outbox.Wrapper
	// EventProducingOperation is outbox.EventProducingOperation.
	EventProducingOperation = outbox.EventProducingOperation
	// Aggregate is outbox.Aggregate.
	Aggregate = outbox.Aggregate
	// AggregateRepository is outbox.AggregateRepository.
	AggregateRepository[A Aggregate] = outbox.AggregateRepository[A]
	// OutboxEnabledAggregateRepository is outbox.OutboxEnabledAggregateRepository.
	OutboxEnabledAggregateRepository[A Aggregate] = outbox.OutboxEnabledAggregateRepository[A]
	// OutboxSagaManager is outbox.OutboxSagaManager.
	OutboxSagaManager = outbox.OutboxSagaManager

	// Publisher is publisher.Publisher.
	Publisher = publisher.Publisher
	// Sink is sinks.Sink.
	Sink = sinks.Sink
	// Message is sinks.Message.
	Message = sinks.Message
	// EventBus is eventbus.Bus.
	EventBus = eventbus.Bus
)

// Functions of package outbox.
var (
	NewWrapper           = outbox.NewWrapper
	CombineOperations    = outbox.CombineOperations
	NewOutboxSagaManager = outbox.NewOutboxSagaManager
	NewID                = outbox.NewID
	TxFromContext        = outbox.TxFromContext
	WithCorrelationID    = outbox.WithCorrelationID
	WithCausationID      = outbox.WithCausationID
	WithTenantID         = outbox.WithTenantID
	WithTraceParent      = outbox.WithTraceParent
	WithSagaStep         = outbox.WithSagaStep
)

// Classes of the errors that a Publisher or a Sink returns.
var (
	ErrPermanent        = sinks.ErrPermanent
	ErrUnavailable      = sinks.ErrUnavailable
	ErrTopicUnavailable = sinks.ErrTopicUnavailable
	ErrNotAttempted     = sinks.ErrNotAttempted
)

// NewOutboxEnabledAggregateRepository is outbox.NewOutboxEnabledAggregateRepository.
func NewOutboxEnabledAggregateRepository[A Aggregate](base AggregateRepository[A], wrapper *Wrapper) *OutboxEnabledAggregateRepository[A] {
	return outbox.NewOutboxEnabledAggregateRepository(base, wrapper)
}
