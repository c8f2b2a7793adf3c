package provision

import (
	"context"

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
