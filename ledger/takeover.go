package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// errNotReady says that the slot has no checkpoint from which a session can start.
var errNotReady = errors.New("no checkpoint that is ready")

// errIncomplete says that somebody has removed a part of the checkpoint's position. If it were taken for zero, a session would have
// to guess what is settled.
var errIncomplete = errors.New("a column of its position is NULL: somebody has changed the row")

// Start is where a session begins: what the ledger says is settled.
type Start struct {
	Checkpoint
	// Clean says that there was no session before, or that it has left (Leave): nothing was sent that is not in the ledger.
	Clean bool
	// Ended says that there was no session before, or that it has ended with all of its Deliver calls: nothing is sent any more by it, nor by
	// one before it.
	Ended bool
	// Settled are the deliveries beyond the prefix whose outcome is in the ledger already. PostgreSQL sends their
	// events again; they must not be delivered again.
	Settled map[checkpoint.Key]struct{}
}

// takeOver ends the backend of the recorder before this one, raises the epoch, commits that, and only then reads what is
// settled, so that no earlier session can still add to it. It must be called after START_REPLICATION has succeeded, because the
// slot is the lock between processes.
func (w *BatchWriter) takeOver(ctx context.Context) (Start, error) {
	var s Start
	if err := w.endPredecessor(ctx); err != nil {
		return s, err
	}
	// The row lock waits for a transaction of the predecessor that is still at work; it commits before us or never. The subquery
	// sees the row as it was before: a predecessor that leaves at this moment counts as one that has not left.
	err := w.conn.QueryRow(ctx, w.cfg.Schema.statement(`update ledger.outbox_checkpoints set epoch = epoch + 1, owner = $2, recorder_pid = pg_backend_pid(),
		recorder_started = `+backendStart+`, updated_at = clock_timestamp()
		where slot_name = $1 and state = 'ready' returning epoch, batch_seq,
			(select c.recorder_pid is null from ledger.outbox_checkpoints c where c.slot_name = $1),
			(select coalesce(c.recorder_pid = 0, true) from ledger.outbox_checkpoints c where c.slot_name = $1)`), w.cfg.Slot, w.cfg.Owner).
		Scan(&w.epoch, &w.seq, &s.Clean, &s.Ended)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, fmt.Errorf("slot %q: %w", w.cfg.Slot, errNotReady)
	} else if err != nil {
		return s, fmt.Errorf("raise epoch: %w", err)
	}
	if err := w.readStart(ctx, &s); err != nil {
		return s, err
	}
	if s.Epoch != w.epoch {
		return s, checkpoint.ErrFenced
	}
	return s, nil
}

// readStart reads the checkpoint and what is settled beyond it, in one snapshot.
func (w *BatchWriter) readStart(ctx context.Context, s *Start) error {
	err := pgx.BeginTxFunc(ctx, w.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		c, err := w.cfg.Schema.selectCheckpoint(ctx, tx, w.cfg.Slot)
		if err != nil {
			return err
		}
		if c == nil {
			return errNotReady
		}
		if c.incomplete {
			return errIncomplete
		}
		s.Checkpoint = *c
		return w.readSettled(ctx, tx, s)
	})
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	return nil
}

// ReadEpoch returns the epoch of a slot's checkpoint as it is committed. It waits for no transaction that changes the row. If there is no
// checkpoint, the error is checkpoint.ErrFenced: somebody has taken it away from under the session.
func (s Schema) ReadEpoch(ctx context.Context, db Querier, slot string) (epoch int32, err error) {
	err = db.QueryRow(ctx, s.statement("select epoch from ledger.outbox_checkpoints where slot_name = $1"), slot).Scan(&epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("slot %q has no checkpoint any more: %w", slot, checkpoint.ErrFenced)
	}
	return epoch, err
}

const backendStart = "(select backend_start from pg_stat_activity where pid = pg_backend_pid())"

// endPredecessor ends the backend that recorded before us. It may hang in a COPY whose client is frozen, and hold the
// checkpoint's row. Its start time must match as well, because pids are used again. Once we have an epoch, only a backend of
// that epoch is ours to end: a session that was taken over must not end its successor's backend.
func (w *BatchWriter) endPredecessor(ctx context.Context) error {
	_, err := w.conn.Exec(ctx, w.cfg.Schema.statement(`select pg_terminate_backend(a.pid) from ledger.outbox_checkpoints c
		join pg_stat_activity a on a.pid = c.recorder_pid and a.backend_start = c.recorder_started
		where c.slot_name = $1 and c.epoch = coalesce(nullif($2, 0), c.epoch) and a.pid <> pg_backend_pid()`), w.cfg.Slot, w.epoch)
	if err != nil {
		return fmt.Errorf("end the recorder before: %w", err)
	}
	return nil
}

// readSettled reads which deliveries beyond the prefix are settled: of streamed positions (index ≥ 0), and of an epoch since this
// slot was made. It reads by position, never by event id, and never more than was in flight. A try that failed settles nothing.
func (w *BatchWriter) readSettled(ctx context.Context, tx pgx.Tx, s *Start) error {
	// One processor at a time: the table may hold millions of rows, and its key begins with the processor.
	rows, err := tx.Query(ctx, w.cfg.Schema.statement(`select p.* from (select id from ledger.outbox_processors union all select 0) processor,
			lateral (select processor_id, commit_lsn, tx_index from ledger.outbox_parked
				where processor_id = processor.id and tx_index >= 0 and (commit_lsn, tx_index) > ($1, $2)) p
		union all
		select processor_id, commit_lsn, tx_index from ledger.outbox_delivery_log
		where commit_lsn >= $1 and tx_index >= 0 and (commit_lsn, tx_index) > ($1, $2)
			and status in ('delivered', 'dead', 'discarded') and epoch >= $3`),
		s.Prefix.LSN, s.Prefix.Index, s.SlotEpoch)
	if err != nil {
		return err
	}
	s.Settled = map[checkpoint.Key]struct{}{}
	var k checkpoint.Key
	_, err = pgx.ForEachRow(rows, []any{&k.Processor, &k.Position.LSN, &k.Position.Index}, func() error {
		s.Settled[k] = struct{}{}
		return nil
	})
	return err
}

// Departure is what a session that has ended says of itself: none of its Deliver calls runs any more.
type Departure struct {
	Epoch int32
	// Clean says that everything that it has sent is in the ledger, as far as it knows.
	Clean bool
	// Processors are its sinks. What committed before SeenBefore may have been sent by an earlier session.
	Processors []int32
	SeenBefore pglogrepl.LSN
}

// Leave notes in the checkpoint that a session has ended: recorder_pid is 0 then, or NULL if it was clean. It does not count as clean if a
// parked row of its processors, committed before SeenBefore, would pass for never sent (all its tries were refused, or it has none) although
// an earlier session may have sent it: the next session would take it for new, wrongly.
func (s Schema) Leave(ctx context.Context, db Execer, slot string, d Departure) error {
	_, err := db.Exec(ctx, s.statement(`update ledger.outbox_checkpoints set recorder_started = null,
			recorder_pid = case when not $3 or exists (select from ledger.outbox_parked p
				where p.processor_id = any ($4::int[]) and p.commit_lsn < $5 and p.status = 'parked' and p.attempts = p.tries) then 0 end
		where slot_name = $1 and epoch = $2`), slot, d.Epoch, d.Clean, d.Processors, d.SeenBefore)
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}
