package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// The states of a checkpoint.
const (
	Building = "building" // init or resync is making its slot
	ready    = "ready"    // its slot can be streamed from
)

// Checkpoint is a slot's row of outbox_checkpoints. What has no value while it is building is zero.
type Checkpoint struct {
	State string // Building or ready
	Identity
	Prefix    checkpoint.Position // everything up to here, this position included, is settled
	Confirmed pglogrepl.LSN       // what may be confirmed to the server
	Epoch     int32               // each session raises it
	SlotEpoch int32               // the epoch when the slot was made
	// Rebuilding says that the checkpoint is building, although it holds a position already: that of the slot which resync replaces.
	Rebuilding bool

	batchSeq int64 // each transaction of the recorder raises it
	// incomplete says that a column which a ready checkpoint needs is null.
	incomplete bool
}

// ReadCheckpoint returns the checkpoint of a slot, or nil if there is none.
func (s Schema) ReadCheckpoint(ctx context.Context, db Querier, slot string) (*Checkpoint, error) {
	c, err := s.selectCheckpoint(ctx, db, slot)
	if err != nil {
		return nil, fmt.Errorf("read checkpoint of slot %q: %w", slot, err)
	}
	return c, nil
}

// selectCheckpoint is ReadCheckpoint with the error as the database gives it.
func (s Schema) selectCheckpoint(ctx context.Context, db Querier, slot string) (*Checkpoint, error) {
	var c Checkpoint
	err := db.QueryRow(ctx, s.statement(`select state, coalesce(system_identifier, ''), coalesce(timeline, 0),
			coalesce(database_oid, 0), coalesce(database_name, ''), coalesce(source_hosts, ''), coalesce(prefix_lsn, '0/0'), coalesce(prefix_index, 0), coalesce(confirmed_lsn, '0/0'),
			epoch, slot_epoch, state = 'building' and prefix_lsn is not null, batch_seq,
			num_nulls(system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn) > 0
		from ledger.outbox_checkpoints where slot_name = $1`), slot).
		Scan(&c.State, &c.SystemIdentifier, &c.Timeline, &c.DatabaseOID, &c.DatabaseName, &c.Hosts, &c.Prefix.LSN, &c.Prefix.Index,
			&c.Confirmed, &c.Epoch, &c.SlotEpoch, &c.Rebuilding, &c.batchSeq, &c.incomplete)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &c, nil
}

// BeginCheckpoint makes a checkpoint that is building, unless the slot has one.
func (s Schema) BeginCheckpoint(ctx context.Context, db Execer, slot string) error {
	_, err := db.Exec(ctx, s.statement("insert into ledger.outbox_checkpoints (slot_name, state) values ($1, $2) on conflict do nothing"), slot, Building)
	if err != nil {
		return fmt.Errorf("write the checkpoint of slot %q: %w", slot, err)
	}
	return nil
}

// HoldsRowsBeyond reports whether outbox_parked holds rows at or beyond a position, which another slot has left.
func (s Schema) HoldsRowsBeyond(ctx context.Context, db Querier, point pglogrepl.LSN) (holds bool, err error) {
	err = db.QueryRow(ctx, s.statement("select exists (select from ledger.outbox_parked where commit_lsn >= $1)"), point).Scan(&holds)
	if err != nil {
		return false, fmt.Errorf("look for parked rows of another history: %w", err)
	}
	return holds, nil
}

// SetReady begins a checkpoint that was building, at the consistent point of its new slot. Index −1 is before the first event of
// a commit record that starts exactly there. The epoch never goes back, and not below the epoch of log rows beyond the point
// either, which another slot has left (in a restored copy, for example): rows of epochs before slot_epoch settle nothing. Nor does it go
// below the epoch of a sink's state: what a session of a slot that was destroyed has written of a sink would be taken for the present.
func (s Schema) SetReady(ctx context.Context, tx pgx.Tx, slot string, of Identity, point pglogrepl.LSN) error {
	tag, err := tx.Exec(ctx, s.statement(`update ledger.outbox_checkpoints c set state = $2, system_identifier = $3, timeline = $4,
			database_oid = nullif($7::oid, 0), database_name = nullif($8, ''), source_hosts = nullif($9, ''), prefix_lsn = $5, prefix_index = -1, confirmed_lsn = $5, epoch = e.epoch, slot_epoch = e.epoch + 1, updated_at = clock_timestamp()
		from (select greatest((select epoch from ledger.outbox_checkpoints where slot_name = $1),
			(select max(epoch) from ledger.outbox_delivery_log where commit_lsn >= $5),
			(select max((state ->> 'epoch')::int) from ledger.outbox_processors where state ->> 'epoch' ~ '^[0-9]{1,8}$')) as epoch) as e
		where slot_name = $1 and state = $6`), slot, ready, of.SystemIdentifier, of.Timeline, point, Building, of.DatabaseOID, of.DatabaseName, of.Hosts)
	if err != nil {
		return fmt.Errorf("write the checkpoint of slot %q: %w", slot, err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("write the checkpoint of slot %q: somebody else has changed it", slot)
	}
	return nil
}

// DeleteCheckpoint deletes the checkpoint of a slot.
func (s Schema) DeleteCheckpoint(ctx context.Context, db Execer, slot string) error {
	if _, err := db.Exec(ctx, s.statement("delete from ledger.outbox_checkpoints where slot_name = $1"), slot); err != nil {
		return fmt.Errorf("delete the checkpoint of slot %q: %w", slot, err)
	}
	return nil
}
