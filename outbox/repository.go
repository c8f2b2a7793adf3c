package outbox

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync/atomic"
)

// Aggregate is what collects its domain events until they are stored.
type Aggregate interface {
	// GetUncommittedEvents are the events since the last MarkEventsAsCommitted, oldest first.
	GetUncommittedEvents() []DomainEvent
	MarkEventsAsCommitted()
}

// AggregateRepository is a repository as a service has it. To take part in the transaction of an
// OutboxEnabledAggregateRepository it uses, in Save, the one that TxFromContext finds; or it has a second method, which is
// called in place of Save:
//
//	SaveTx(ctx context.Context, tx *sql.Tx, aggregate A) error
//
// It neither commits that transaction nor marks the events as committed.
type AggregateRepository[A Aggregate] interface {
	Save(ctx context.Context, aggregate A) error
}

// OutboxEnabledAggregateRepository stores aggregates together with their events. It may be used concurrently if the base
// repository may.
type OutboxEnabledAggregateRepository[A Aggregate] struct { //nolint:revive // the platform's name for it
	base    AggregateRepository[A]
	wrapper *Wrapper
}

// NewOutboxEnabledAggregateRepository wraps a repository, which may itself be a store of events.
func NewOutboxEnabledAggregateRepository[A Aggregate](base AggregateRepository[A], wrapper *Wrapper) *OutboxEnabledAggregateRepository[A] {
	return &OutboxEnabledAggregateRepository[A]{base: base, wrapper: wrapper}
}

// Save stores the aggregate by the base repository and writes its uncommitted events in the same transaction. Once that is
// committed, and not before, they are marked as committed.
//
// Errors and panics are those of Wrapper.ExecuteWithOutbox, with the base's Save as its operation; the aggregate keeps its
// events then. It is an error too if the base stored the aggregate without the transaction: the events are not written, and
// what the base has stored is not rolled back. And it is an error if the base gives the aggregate more events.
func (r *OutboxEnabledAggregateRepository[A]) Save(ctx context.Context, aggregate A) error {
	if _, nested := ctx.Value(txKey{}).(*sharedTx); nested {
		// The outer Save commits. So this one could not wait for the commit before it marks the events.
		return errors.New("save: ctx belongs to the transaction of another Save; save each aggregate in its own, or several by ExecuteBatch")
	}
	events := slices.Clone(aggregate.GetUncommittedEvents()) // before the base has a chance to forget them
	err := r.wrapper.ExecuteWithOutbox(ctx, EventProducingOperation{
		Operation: func(tx *sql.Tx) error {
			if err := r.saveBase(ctx, tx, aggregate); err != nil {
				return err
			}
			if len(aggregate.GetUncommittedEvents()) > len(events) { // they would be marked and never written
				return errors.New("save: the aggregate has more events than when it was given; let it have them all before Save")
			}
			return nil
		},
		Events: events,
	})
	if err != nil {
		return err
	}
	aggregate.MarkEventsAsCommitted()
	return nil
}

// saveBase saves the aggregate by the base repository, in tx. It returns an error if that has used another transaction.
func (r *OutboxEnabledAggregateRepository[A]) saveBase(ctx context.Context, tx *sql.Tx, aggregate A) error {
	shared := &sharedTx{tx: tx}
	ctx = context.WithValue(ctx, txKey{}, shared)
	if base, ok := r.base.(interface {
		SaveTx(ctx context.Context, tx *sql.Tx, aggregate A) error
	}); ok {
		return base.SaveTx(ctx, tx, aggregate)
	}
	if err := r.base.Save(ctx, aggregate); err != nil {
		return err
	}
	if !shared.taken.Load() {
		return errors.New("save: the base repository used another transaction than that of the outbox; " +
			"let its Save use what outbox.TxFromContext(ctx) returns, or give it a method SaveTx(ctx, tx, aggregate)")
	}
	return nil
}

type sharedTx struct {
	tx    *sql.Tx
	taken atomic.Bool
}

type txKey struct{}

// TxFromContext is the transaction in which an OutboxEnabledAggregateRepository calls the Save of its base; ok is false
// elsewhere. It is for that call only.
func TxFromContext(ctx context.Context) (tx *sql.Tx, ok bool) {
	shared, ok := ctx.Value(txKey{}).(*sharedTx)
	if !ok {
		return nil, false
	}
	shared.taken.Store(true)
	return shared.tx, true
}
