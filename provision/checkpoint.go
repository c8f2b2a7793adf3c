package provision

import (
	"context"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// readCheckpoint returns nil if the slot has no checkpoint, or if there is no ledger yet.
func readCheckpoint(ctx context.Context, db ledger.Querier, s Source) (*ledger.Checkpoint, error) {
	var exists bool
	err := db.QueryRow(ctx, `select exists (select from pg_class c join pg_namespace n on n.oid = relnamespace
		where nspname = $1 and relname = 'outbox_checkpoints')`, s.LedgerSchema).Scan(&exists)
	if err != nil || !exists {
		return nil, err
	}
	if err := CheckOwners(ctx, db, s); err != nil {
		return nil, err
	}
	return s.ledger().ReadCheckpoint(ctx, db, s.Slot)
}

// setReady begins the checkpoint at the consistent point of the new slot, unless the ledger holds rows that another slot has left
// beyond it.
func setReady(ctx context.Context, conn *pgx.Conn, s Source, now ledger.Identity, point pglogrepl.LSN) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		foreign, err := s.ledger().HoldsRowsBeyond(ctx, tx, point)
		if err != nil {
			return err
		}
		if foreign {
			return exitcode.Errorf(exitcode.SlotLost, `outbox_parked holds rows beyond %s, of a slot with another history; number them anew as docs/slot.md#parked-rows shows, `+
				`or give them up with "outbox-cdc dlq kill --all" and "outbox-cdc dlq discard --all"; then run "outbox-cdc init --backlog none" again`, point)
		}
		return s.ledger().SetReady(ctx, tx, s.Slot, now, point)
	})
}
