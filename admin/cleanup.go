package admin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// CleanupOptions say what Cleanup does.
type CleanupOptions struct {
	Retention cleanup.Retention
	// DryRun looks at what would be deleted, and deletes nothing.
	DryRun bool
	// Most bounds how many rows of the outbox a dry run looks at. 0 sets no bound.
	Most int64
	// Progress is called with the number of rows deleted so far. It may be nil.
	Progress func(deleted int64)
}

// CleanupResult says what Cleanup has deleted, and what stays for which reason.
type CleanupResult struct {
	cleanup.Report
	// Slot is the slot that has settled least. What is beyond that point stays. It is nil if there is none.
	Slot *ledger.SlotPrefix `json:"slot,omitempty"`
}

// Cleanup deletes now what the retention allows, as the connector that streams does all the time. A connector may run meanwhile.
//
// If ctx ends, Cleanup finishes the chunk that is under way, of 1,000 rows at most, and returns the cause of ctx with what it has deleted
// until then. A missing right is no error: CleanupResult.Grants has the statements that give it.
func Cleanup(ctx context.Context, c Config, o CleanupOptions) (CleanupResult, error) {
	var result CleanupResult
	// The error of the work is kept apart: if the server goes away meanwhile, that is not "PostgreSQL cannot be reached".
	var fault error
	err := provision.WithConn(ctx, c.DSN, c.Source, func(conn *pgx.Conn) error {
		l := &ledgerConn{conn: conn, cfg: c}
		if err := l.openCleanup(ctx); err != nil {
			return err
		}
		fault = l.cleanUp(ctx, o, &result)
		return nil
	})
	if err != nil {
		return result, cleanupError(replication.ExplainUnreachable(err))
	}
	return result, cleanupError(fault)
}

// openCleanup sets up the connection. The settings of ledger.SetUpCommand are for reads of outbox_parked.
func (l *ledgerConn) openCleanup(ctx context.Context) error {
	if _, err := l.conn.Exec(ctx, "set lock_timeout = '2s'; set idle_in_transaction_session_timeout = '10s'"); err != nil {
		return fmt.Errorf("set up the connection: %w", err)
	}
	return provision.CheckOwners(ctx, l.conn, l.cfg.Source)
}

// cleanupError adds the remedy to an error of the database.
func cleanupError(err error) error {
	switch {
	case errors.Is(err, ledger.ErrCleanupRuns):
		return fmt.Errorf("%w: a connector does that while it streams, or somebody else has begun this command; try again in a moment", err)
	case errors.Is(err, ledger.ErrOutboxTable):
		return exitcode.Errorf(exitcode.Config, "%w", err)
	}
	return ledgerError(err)
}

func (l *ledgerConn) cleanUp(ctx context.Context, o CleanupOptions, result *CleanupResult) error {
	source := l.cfg.Source
	source.Cleanup = o.Retention.Deletes()
	var deleted int64
	cleaner := cleanup.New(cleanup.Config{
		Retention: o.Retention,
		Database:  &cleanup.Postgres{Conn: l.conn, Source: source},
		Rest:      func(context.Context, time.Duration) error { return context.Cause(ctx) },
		Deleted: func(_ string, rows int64) {
			deleted += rows
			if o.Progress != nil {
				o.Progress(deleted)
			}
		},
	})
	// Only Rest looks at ctx: a statement that is called off deletes nothing, and the connection is lost.
	work := context.WithoutCancel(ctx)
	var err error
	if o.DryRun {
		result.Report, err = cleaner.DryRun(work, o.Most)
	} else {
		result.Report, err = cleaner.Pass(work)
	}
	slot, slotErr := l.schema().LeastPrefix(work, l.conn) // also if the pass has ended early: something may stay because of it
	result.Slot = slot
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		return fmt.Errorf("ended early: %w; run it again to go on", err)
	case err != nil:
		return err
	}
	return slotErr
}
