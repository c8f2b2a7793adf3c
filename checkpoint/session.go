package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// ErrFenced says that another session has taken over: its epoch is higher than ours.
var ErrFenced = errors.New("another session has taken over")

// ErrNotReady says that there is no checkpoint to start from.
var ErrNotReady = errors.New("no checkpoint that is ready")

// Key names a delivery.
type Key struct {
	Processor int32
	Position  Position
}

// Start is where a session begins: what the ledger says is settled.
type Start struct {
	Epoch            int32
	SlotEpoch        int32
	SystemIdentifier string
	Timeline         int32
	Prefix           Position
	Confirmed        pglogrepl.LSN
	// Clean says that there was no session before, or that it has left (Leave): nothing was sent that is not in the ledger.
	Clean bool
	// Settled are the deliveries beyond the prefix whose outcome is in the ledger already. PostgreSQL sends their
	// events again; they must not be delivered again.
	Settled map[Key]struct{}
}

// open takes the ledger over: it ends the backend of the recorder before it, raises the epoch, commits that, and only
// then reads what is settled, so that no session before this one can still add to it. It must be called after
// START_REPLICATION has succeeded: the slot is the lock.
func (l *postgres) open(ctx context.Context) (Start, error) {
	var s Start
	if err := l.endPredecessor(ctx); err != nil {
		return s, err
	}
	// The row lock waits for a predecessor's transaction that is still at work; it commits before us or never. The subquery
	// sees the row as it was before: a predecessor that leaves at this moment counts as one that has not.
	err := l.conn.QueryRow(ctx, l.cfg.Schema.SQL(`update ledger.outbox_checkpoints set epoch = epoch + 1, owner = $2, recorder_pid = pg_backend_pid(),
		recorder_started = `+backendStart+`, updated_at = clock_timestamp()
		where slot_name = $1 and state = 'ready' returning epoch, batch_seq,
			(select c.recorder_pid is null from ledger.outbox_checkpoints c where c.slot_name = $1)`), l.cfg.Slot, l.cfg.Owner).Scan(&l.epoch, &l.seq, &s.Clean)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, fmt.Errorf("slot %q: %w", l.cfg.Slot, ErrNotReady)
	} else if err != nil {
		return s, fmt.Errorf("raise epoch: %w", err)
	}
	err = pgx.BeginTxFunc(ctx, l.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := l.readCheckpoint(ctx, tx, &s); err != nil {
			return err
		}
		return l.readSettled(ctx, tx, &s)
	})
	if err != nil {
		return s, fmt.Errorf("read checkpoint: %w", err)
	}
	if s.Epoch != l.epoch {
		return s, ErrFenced
	}
	return s, nil
}

// Leave notes that the session of this epoch has ended, and that all that it has sent is in the ledger. It does not where a
// parked row of these processors, of before this position, would pass for never sent (its tries were refused, or there were none)
// although an earlier session may have sent it: what the next session may take for new would be wrong.
func Leave(ctx context.Context, db execer, schema ledger.Schema, slot string, epoch int32, processors []int32, seenBefore pglogrepl.LSN) error {
	_, err := db.Exec(ctx, schema.SQL(`update ledger.outbox_checkpoints set recorder_pid = null, recorder_started = null
		where slot_name = $1 and epoch = $2 and not exists (select from ledger.outbox_parked p
			where p.processor_id = any ($3::int[]) and p.commit_lsn < $4 and p.status = 'parked' and p.attempts = p.tries)`),
		slot, epoch, processors, seenBefore)
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

const backendStart = "(select backend_start from pg_stat_activity where pid = pg_backend_pid())"

// endPredecessor ends the backend that recorded before us, which may hang in a COPY whose client is frozen and hold
// the checkpoint's row. Its start time must match as well: pids are used again. Once we have an epoch, only a backend
// of that epoch is ours to end: a session that was taken over must not end its successor's.
func (l *postgres) endPredecessor(ctx context.Context) error {
	_, err := l.conn.Exec(ctx, l.cfg.Schema.SQL(`select pg_terminate_backend(a.pid) from ledger.outbox_checkpoints c
		join pg_stat_activity a on a.pid = c.recorder_pid and a.backend_start = c.recorder_started
		where c.slot_name = $1 and c.epoch = coalesce(nullif($2, 0), c.epoch) and a.pid <> pg_backend_pid()`), l.cfg.Slot, l.epoch)
	if err != nil {
		return fmt.Errorf("end the recorder before: %w", err)
	}
	return nil
}

func (l *postgres) readCheckpoint(ctx context.Context, tx pgx.Tx, s *Start) error {
	return tx.QueryRow(ctx, l.cfg.Schema.SQL(`select epoch, slot_epoch, system_identifier::text, timeline, prefix_lsn, prefix_index, confirmed_lsn
		from ledger.outbox_checkpoints where slot_name = $1`), l.cfg.Slot).
		Scan(&s.Epoch, &s.SlotEpoch, &s.SystemIdentifier, &s.Timeline, &s.Prefix.LSN, &s.Prefix.Index, &s.Confirmed)
}

// readSettled reads by position, never by event id: what is settled of streamed positions (index ≥ 0) beyond the
// prefix, of an epoch since this slot was made. It is never more than was in flight. A failed try settles nothing.
func (l *postgres) readSettled(ctx context.Context, tx pgx.Tx, s *Start) error {
	// A processor at a time: the table may hold millions of rows, and its key begins so.
	rows, err := tx.Query(ctx, l.cfg.Schema.SQL(`select p.* from (select id from ledger.outbox_processors union all select 0) processor,
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
	s.Settled = map[Key]struct{}{}
	var k Key
	_, err = pgx.ForEachRow(rows, []any{&k.Processor, &k.Position.LSN, &k.Position.Index}, func() error {
		s.Settled[k] = struct{}{}
		return nil
	})
	return err
}

// measureClock sets how far PostgreSQL's clock is ahead of ours, so that the log's times are PostgreSQL's.
func (l *postgres) measureClock(ctx context.Context) error {
	var theirs time.Time
	before := time.Now()
	if err := l.conn.QueryRow(ctx, "select clock_timestamp()").Scan(&theirs); err != nil {
		return fmt.Errorf("ask the server's clock: %w", err)
	}
	after := time.Now()
	l.clock = theirs.Sub(before.Add(after.Sub(before) / 2))
	return nil
}
