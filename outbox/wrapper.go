package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Wrapper runs operations and writes their events in one transaction. It may be used concurrently; its fields are set
// before that.
type Wrapper struct {
	db *sql.DB

	// TxOptions are those of the transactions; nil leaves them to the database.
	TxOptions *sql.TxOptions
	// Retries is how often a transaction that PostgreSQL has given up for the sake of another one (SQLSTATE 40001 or 40P01)
	// is begun anew, its operation included, after a random pause that doubles from 10 ms to 1 s. The driver's
	// error must be found in the one that the operation returns, by errors.As. 0, the default: not at all.
	Retries int
}

// NewWrapper makes a Wrapper for a database that has an event_outbox, opened with lib/pq or with pgx/stdlib (for a pool of
// pgx, stdlib.OpenDBFromPool). The caller keeps db and closes it.
func NewWrapper(db *sql.DB) *Wrapper { return &Wrapper{db: db} }

// EventProducingOperation is what a service does in a transaction, and the events that tell of it.
type EventProducingOperation struct {
	// Operation uses tx, and neither commits it nor keeps it. It may be nil where the events are all there is to do. It may
	// run several times if the Wrapper has Retries.
	Operation func(tx *sql.Tx) error
	// Events are read once Operation has returned, so it may complete those that are pointers.
	Events []DomainEvent
}

// ExecuteWithOutbox runs the operation and writes its events in one transaction: both are committed, or neither. Events are
// checked and written as InsertSQL does it, with what ctx says of them (WithCorrelationID and its like).
//
// The error is the operation's own, as it was, or tells the step: begin, insert events, commit, or what is wrong with an
// event. Then all is rolled back; only an error of commit that comes from the connection leaves the outcome open, and only
// events that bring an id of their own may safely be written again then. If the operation panics, the transaction is rolled
// back and the panic goes on. The transaction is also rolled back when ctx ends before it is committed.
func (w *Wrapper) ExecuteWithOutbox(ctx context.Context, operation EventProducingOperation) error {
	return w.transaction(ctx, w.TxOptions, func(tx *sql.Tx) error {
		if operation.Operation != nil {
			if err := operation.Operation(tx); err != nil {
				return err
			}
		}
		events, err := EventsOf(operation.Events)
		if err != nil {
			return err
		}
		return InsertSQL(ctx, tx, events...)
	})
}

// ExecuteBatch is ExecuteWithOutbox for several operations in one transaction: all are committed, or none.
func (w *Wrapper) ExecuteBatch(ctx context.Context, operations ...EventProducingOperation) error {
	return w.ExecuteWithOutbox(ctx, CombineOperations(operations...))
}

// CombineOperations makes one operation of several: they run in order up to the first error, which is wrapped with the
// number of its operation, from 0; the events follow, in the same order.
func CombineOperations(operations ...EventProducingOperation) EventProducingOperation {
	if len(operations) == 1 {
		return operations[0]
	}
	var combined EventProducingOperation
	for _, o := range operations {
		combined.Events = append(combined.Events, o.Events...)
	}
	combined.Operation = func(tx *sql.Tx) error {
		for i, o := range operations {
			if o.Operation == nil {
				continue
			}
			if err := o.Operation(tx); err != nil {
				return fmt.Errorf("operations[%d]: %w", i, err)
			}
		}
		return nil
	}
	return combined
}

const (
	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
)

// transaction runs work in a transaction and commits it, again if that is allowed and of use.
func (w *Wrapper) transaction(ctx context.Context, options *sql.TxOptions, work func(*sql.Tx) error) error {
	pause := firstPause
	for try := 0; ; try++ {
		err := w.try(ctx, options, work)
		if try >= w.Retries || !isSerializationFailure(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pause/2 + rand.N(pause)): //nolint:gosec // a jitter: those that met once should not meet again
		}
		pause = min(2*pause, maxPause)
	}
}

func (w *Wrapper) try(ctx context.Context, options *sql.TxOptions, work func(*sql.Tx) error) error {
	tx, err := w.db.BeginTx(ctx, options)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // for errors and panics, which say more; after Commit it does nothing
	if err = work(tx); err == nil {
		if err = tx.Commit(); err != nil {
			err = fmt.Errorf("commit: %w", err)
		}
	}
	if errors.Is(err, sql.ErrTxDone) && ctx.Err() != nil { // database/sql has rolled back, and forgets why
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// isSerializationFailure finds serialization_failure and deadlock_detected in any driver's error.
func isSerializationFailure(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && (state.SQLState() == "40001" || state.SQLState() == "40P01")
}
