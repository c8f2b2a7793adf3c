package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// OutboxSagaManager runs steps of sagas. It keeps nothing, so any number of them, in any processes, may run steps of one
// saga.
type OutboxSagaManager struct { //nolint:revive // the platform's name for it
	wrapper *Wrapper
}

// NewOutboxSagaManager makes one whose steps run in transactions of wrapper.
func NewOutboxSagaManager(wrapper *Wrapper) *OutboxSagaManager {
	return &OutboxSagaManager{wrapper: wrapper}
}

// WithSagaStep names the step that ExecuteSagaStep runs with ctx. The name tells it apart from the other steps of its saga.
func WithSagaStep(ctx context.Context, name string) context.Context {
	return with(ctx, func(c *carried) { c.sagaStep = name })
}

// ExecuteSagaStep runs a step and writes its result events in one transaction. If that fails, it is rolled back, and the
// compensation events are written in a transaction of their own, which does not end with ctx but takes at most 10 s. The
// error is that of the step, joined by another if the compensation events could not be written: call again then. A step
// that panics is compensated, too, and the panic goes on.
//
// A step may be called again, by any process and at the same time. If it fails again, its compensation events are there
// already, and nothing is written. What makes this work is that they have the same ids again: their own, or, if the step
// has a name (WithSagaStep), ids that are made from saga, name and position, in place of their own. Without either,
// the step is not run, as with compensation events that are no valid ones. If step itself succeeds and then its result
// events turn out to be in the outbox, the step was committed before: by an earlier call, whose events had the same ids,
// or by this one, though the connection was lost. Then this call has no effect, and the error is nil. In a step with a
// name, that holds for result events without ids, too, as they get theirs in the same way.
//
// Events without a CorrelationID get the id of the saga; those without a CausationID that of ctx (WithCausationID) or else
// the step: the id of the saga, with "/" and the name if there is one.
//
// Between rolling back and compensating, the process can die: it is for the caller to call again what has not returned.
func (m *OutboxSagaManager) ExecuteSagaStep(ctx context.Context, sagaID string, step func(tx *sql.Tx) error, compensationEvents, resultEvents []DomainEvent) error {
	ctx, s := newSagaStep(ctx, sagaID)
	compensation, err := s.compensation(ctx, compensationEvents)
	if err != nil {
		return err
	}

	returned := false
	defer func() {
		if !returned { // step panics; nobody would hear of another error
			_ = m.compensate(ctx, compensation, nil)
		}
	}()
	var sent []Event // result events that went to the database
	err = m.wrapper.transaction(ctx, m.wrapper.TxOptions, func(tx *sql.Tx) error {
		sent = nil
		if err := step(tx); err != nil {
			return err
		}
		results, err := s.results(resultEvents)
		if err != nil {
			return err
		}
		return insert(ctx, results, func(statement string, args []any) error {
			sent = results
			_, err := tx.ExecContext(ctx, statement, args...)
			return err
		})
	})
	returned = true
	if err == nil {
		return nil
	}
	switch inner := m.compensate(ctx, compensation, sent); {
	case errors.Is(inner, errCommitted):
		return nil
	case inner != nil:
		return errors.Join(err, fmt.Errorf("write the compensation events: %w", inner))
	}
	return err
}

// compensate writes the compensation events that are not in the outbox yet. If results are, it is errCommitted.
func (m *OutboxSagaManager) compensate(ctx context.Context, compensation, results []Event) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), compensationTimeout)
	defer cancel()
	// At other levels than this one, meeting a row that a concurrent call has written is an error.
	options := &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	return m.wrapper.transaction(ctx, options, func(tx *sql.Tx) error {
		if len(results) > 0 {
			if err := probe(ctx, tx, results); err != nil {
				return err
			}
		}
		return insert(ctx, compensation, func(statement string, args []any) error {
			_, err := tx.ExecContext(ctx, statement+"\non conflict do nothing", args...)
			return err
		})
	})
}

const compensationTimeout = 10 * time.Second

var errCommitted = errors.New("the step is committed")

// probe is errCommitted if rows with the ids of these events are there. Inserting them, in order to roll back, is more than
// to look: it waits for a transaction that has inserted them and is still busy with its commit, and it needs no right that
// a producer may not have.
func probe(ctx context.Context, tx *sql.Tx, events []Event) error {
	var ids array
	for _, e := range events {
		ids.add(e.ID)
	}
	if _, err := tx.ExecContext(ctx, "savepoint outbox_probe"); err != nil {
		return err
	}
	result, err := tx.ExecContext(ctx, `insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload)
		select id, '', '', '', '{}' from unnest($1::uuid[]) as event (id) on conflict do nothing`, ids.literal())
	if err != nil {
		return err
	}
	inserted, err := result.RowsAffected()
	if err != nil {
		return err
	}
	if inserted == 0 { // if some only, they are not of this step: it wrote all or none
		return errCommitted
	}
	_, err = tx.ExecContext(ctx, "rollback to savepoint outbox_probe")
	return err
}

type sagaStep struct {
	id   string // of the saga
	name string
}

// newSagaStep also returns the context that carries the ids of the saga.
func newSagaStep(ctx context.Context, sagaID string) (context.Context, sagaStep) {
	c, _ := ctx.Value(carriedKey{}).(carried)
	s := sagaStep{id: sagaID, name: c.sagaStep}
	ctx = WithCorrelationID(ctx, sagaID)
	if c.causationID == "" {
		causation := sagaID
		if s.name != "" {
			causation += "/" + s.name
		}
		ctx = WithCausationID(ctx, causation)
	}
	return ctx, s
}

func (s *sagaStep) compensation(ctx context.Context, list []DomainEvent) ([]Event, error) {
	if s.id == "" {
		return nil, errors.New("the saga has no id")
	}
	events, err := EventsOf(list)
	for i := range events {
		if s.name != "" {
			events[i].ID = s.eventID("compensation", i)
		} else if events[i].ID == "" && err == nil {
			err = errors.New("has no id, and the step no name (outbox.WithSagaStep): it could not be told whether it is there already")
			err = fmt.Errorf("events[%d] %w", i, err)
		}
	}
	if err == nil {
		err = validate(fill(ctx, events))
	}
	if err != nil {
		return nil, fmt.Errorf("compensation events: %w", err)
	}
	return events, nil
}

func (s *sagaStep) results(list []DomainEvent) ([]Event, error) {
	events, err := EventsOf(list)
	for i := range events {
		switch {
		case events[i].ID != "":
		case s.name != "":
			events[i].ID = s.eventID("result", i)
		default:
			events[i].ID = NewID()
		}
	}
	return events, err
}

// eventID is the same for the same event of the same step, always.
func (s *sagaStep) eventID(kind string, i int) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "outbox-cdc:saga:%q/%q/%s/%d", s.id, s.name, kind, i)).String()
}
