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
// the step is not run, as with compensation events that are no valid ones. A call that succeeds does not take back what an
// earlier one has compensated.
//
// A step with a name whose result events are in the outbox was committed before: by an earlier call, or by this one, though
// the connection was lost. Then this call has no effect, even if step fails, as it may for the very reason that it
// was committed, and the error is nil. For that, its result events get such ids, too, and a CausationID that is the id of
// another of them follows. In a step without a name it holds only if step succeeds and all its result events bring
// the ids that they had before. A step without result events leaves nothing to know it by: it is run again.
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

	ids := s.eventIDs("result", len(resultEvents)) // of result events by which a committed step is known
	returned := false
	defer func() {
		if !returned { // step panics; nobody would hear of another error
			_ = m.compensate(ctx, s, compensation, ids)
		}
	}()
	err = m.wrapper.transaction(ctx, m.wrapper.TxOptions, func(tx *sql.Tx) error {
		ids = s.eventIDs("result", len(resultEvents))
		if err := step(tx); err != nil {
			return err
		}
		results, err := s.results(resultEvents)
		if err != nil {
			return err
		}
		return writeEvents(ctx, results, func(statement string, args []any) error {
			ids = idsOf(results)
			_, err := tx.ExecContext(ctx, statement, args...)
			return err
		})
	})
	returned = true
	if err == nil {
		return nil
	}
	switch inner := m.compensate(ctx, s, compensation, ids); {
	case errors.Is(inner, errCommitted):
		return nil
	case inner != nil:
		return errors.Join(err, fmt.Errorf("write the compensation events: %w", inner))
	}
	return err
}

// compensate writes the compensation events that are not in the outbox yet. If the result events with the ids in results are in the
// outbox, it writes nothing and returns errCommitted.
func (m *OutboxSagaManager) compensate(ctx context.Context, s sagaStep, compensation []Event, results []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), compensationTimeout)
	defer cancel()
	// At other levels than this one, meeting a row that a concurrent call has written is an error.
	options := &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	return m.wrapper.transaction(ctx, options, func(tx *sql.Tx) error {
		if len(results) > 0 {
			found, err := probe(ctx, tx, results)
			if err != nil {
				return err
			}
			// Ids that are made of the step's name belong to no other step, so one of them is enough. Other ids may have come
			// otherwise, so all of them have to be there: the step has written all or none.
			if found == len(results) || found > 0 && s.name != "" {
				return errCommitted
			}
		}
		return writeEvents(ctx, compensation, func(statement string, args []any) error {
			_, err := tx.ExecContext(ctx, statement+"\non conflict do nothing", args...)
			return err
		})
	})
}

const compensationTimeout = 10 * time.Second

var errCommitted = errors.New("the step is committed")

// probe counts the rows that have these ids. Inserting them, in order to roll back, is more than to look: it waits for a
// transaction that has inserted them and is still busy with its commit, and it needs no right that a producer may not have.
// It fills every column that a table of the user's own may want filled.
func probe(ctx context.Context, tx *sql.Tx, ids []string) (found int, err error) {
	var list array
	for _, id := range ids {
		list.add(id)
	}
	if _, err := tx.ExecContext(ctx, "savepoint outbox_probe"); err != nil {
		return 0, err
	}
	result, err := tx.ExecContext(ctx, `insert into event_outbox (id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, created_at)
		select id, '-', '-', '-', 1, '{}', '{}', pg_catalog.now() from pg_catalog.unnest($1::pg_catalog.uuid[]) as event (id) on conflict do nothing`, list.literal())
	if err != nil {
		return 0, err
	}
	inserted, err := result.RowsAffected()
	if err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, "rollback to savepoint outbox_probe")
	return len(ids) - int(inserted), err
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
	s.identify("compensation", events)
	for i := range events {
		if events[i].ID == "" && err == nil {
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
	s.identify("result", events)
	for i := range events {
		if events[i].ID == "" {
			events[i].ID = NewID()
		}
	}
	return events, err
}

// identify sets the ids of the events of a step with a name. If one of these events is the cause of another, the CausationID of
// the other gets the new id.
func (s *sagaStep) identify(kind string, events []Event) {
	now := map[string]string{}
	for i, id := range s.eventIDs(kind, len(events)) {
		if own := events[i].ID; own != "" {
			now[own] = id
		}
		events[i].ID = id
	}
	for i := range events {
		if id, ok := now[events[i].CausationID]; ok {
			events[i].CausationID = id
		}
	}
}

// eventIDs returns the ids of a step's n events of this kind. They are always the same for the same saga, step and position. It
// returns none if the step has no name.
func (s *sagaStep) eventIDs(kind string, n int) (ids []string) {
	if s.name == "" {
		return nil
	}
	for i := range n {
		ids = append(ids, uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "outbox-cdc:saga:%q/%q/%s/%d", s.id, s.name, kind, i)).String())
	}
	return ids
}

func idsOf(events []Event) (ids []string) {
	for i := range events {
		ids = append(ids, events[i].ID)
	}
	return ids
}
