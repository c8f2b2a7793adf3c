package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// Checkpoint is the row of a slot in outbox_checkpoints.
type checkpointRow struct {
	State            string
	SystemIdentifier string
	// Older means that the slot is half made, and that the row also has the prefix of a slot that came before it.
	Older bool
}

const (
	stateBuilding = "building"
	stateReady    = "ready"
)

// readCheckpoint reads the checkpoint of the slot. It returns nil if there is none, or no ledger yet.
func readCheckpoint(ctx context.Context, db SQL, s Source) (*checkpointRow, error) {
	var ledger bool
	err := db.QueryRow(ctx, `select exists (select from pg_class c join pg_namespace n on n.oid = relnamespace
		where nspname = $1 and relname = 'outbox_checkpoints')`, s.LedgerSchema).Scan(&ledger)
	if err != nil || !ledger {
		return nil, err
	}
	if err := CheckOwners(ctx, db, s); err != nil {
		return nil, err
	}
	var c checkpointRow
	err = db.QueryRow(ctx, s.Ledger(`select state, coalesce(system_identifier, ''), state = 'building' and prefix_lsn is not null
		from ledger.outbox_checkpoints where slot_name = $1`), s.Slot).Scan(&c.State, &c.SystemIdentifier, &c.Older)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint of slot %q: %w", s.Slot, err)
	}
	return &c, nil
}

// beginCheckpoint writes the row of a slot that is about to be made. A row that exists stays as it is.
func beginCheckpoint(ctx context.Context, conn *pgx.Conn, s Source) error {
	_, err := conn.Exec(ctx, s.Ledger("insert into ledger.outbox_checkpoints (slot_name, state) values ($1, $2) on conflict do nothing"), s.Slot, stateBuilding)
	if err != nil {
		return fmt.Errorf("write the checkpoint of slot %q: %w", s.Slot, err)
	}
	return nil
}

// setReady starts the checkpoint of a new slot at the slot's consistent point.
//
// The prefix has the index −1, because a commit record may start exactly at the consistent point, and its first event has the
// index 0.
//
// The new epoch is not lower than any epoch of this checkpoint, nor than that of any log row beyond the consistent point. Such
// rows were left by another slot, for example in a restored copy. They settle nothing, because their epochs are below
// slot_epoch.
func setReady(ctx context.Context, conn *pgx.Conn, s Source, sys pglogrepl.IdentifySystemResult, point pglogrepl.LSN) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var foreign bool
		err := tx.QueryRow(ctx, s.Ledger("select exists (select from ledger.outbox_parked where commit_lsn >= $1 and tx_index >= 0)"), point).Scan(&foreign)
		if err != nil {
			return fmt.Errorf("look for parked rows of another history: %w", err)
		}
		if foreign {
			return exitcode.Errorf(exitcode.SlotLost, `outbox_parked holds rows beyond %s, of a slot with another history; number them anew as docs/operations.md#parked-rows shows, `+
				`or give them up with "outbox-cdc dlq kill --all" and "outbox-cdc dlq discard --all"; then run "outbox-cdc init --backlog none" again`, point)
		}
		tag, err := tx.Exec(ctx, s.Ledger(`update ledger.outbox_checkpoints c set state = $2, system_identifier = $3, timeline = $4,
				prefix_lsn = $5, prefix_index = -1, confirmed_lsn = $5, epoch = e.epoch, slot_epoch = e.epoch + 1, updated_at = clock_timestamp()
			from (select greatest((select epoch from ledger.outbox_checkpoints where slot_name = $1),
				(select max(epoch) from ledger.outbox_delivery_log where commit_lsn >= $5)) as epoch) as e
			where slot_name = $1 and state = $6`), s.Slot, stateReady, sys.SystemID, sys.Timeline, point, stateBuilding)
		if err != nil {
			return fmt.Errorf("write the checkpoint of slot %q: %w", s.Slot, err)
		}
		if tag.RowsAffected() != 1 {
			return fmt.Errorf("write the checkpoint of slot %q: somebody else has changed it", s.Slot)
		}
		return nil
	})
}

// deleteCheckpoint deletes the row of a slot that was dropped.
func deleteCheckpoint(ctx context.Context, conn *pgx.Conn, s Source) error {
	if _, err := conn.Exec(ctx, s.Ledger("delete from ledger.outbox_checkpoints where slot_name = $1"), s.Slot); err != nil {
		return fmt.Errorf("delete the checkpoint of slot %q: %w", s.Slot, err)
	}
	return nil
}
