package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const copyLog = "copy outbox_delivery_log (" + logColumns + ") from stdin (format binary)"

// The epoch fences a session that was taken over; batch_seq refuses a batch that is committed already.
const updateCheckpoint = `update outbox_checkpoints set prefix_lsn = $4, prefix_index = $5, confirmed_lsn = $6,
	batch_seq = batch_seq + 1, updated_at = clock_timestamp()
	where slot_name = $1 and epoch = $2 and batch_seq = $3 and state = 'ready'`

const insertDead = `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, attempts, tries,
	tried_at, parked_at, error_message, event, payload) values ($1, $2, $3, $4, $5, 'dead', $6, $7, $8, clock_timestamp(), $9, $10, $11)`

// attempt tries the batch once. After an error whose outcome is unknown it asks the ledger.
func (r *Recorder) attempt(ctx context.Context, batch []Outcomes, mark Mark) error {
	if r.conn == nil || r.conn.IsClosed() {
		if err := r.connect(ctx); err != nil {
			return err
		}
		done, err := r.committed(ctx)
		if done || err != nil {
			return err
		}
	}
	r.rollback(ctx) // what the attempt before left open
	err := r.transaction(ctx, batch, mark)
	if !missingPartition(err) {
		return err
	}
	r.rollback(ctx)
	if err := r.makePartitions(ctx); err != nil {
		return fmt.Errorf("make log partitions: %w", err)
	}
	return r.transaction(ctx, batch, mark)
}

// committed says whether the batch at hand went through: by its batch_seq. From then on the new connection is the one
// that a successor has to end.
func (r *Recorder) committed(ctx context.Context) (bool, error) {
	if err := r.endPredecessor(ctx); err != nil { // our own backend of before may still be at work
		return false, err
	}
	var seq int64
	// The row lock waits for that backend's transaction to end.
	err := r.conn.QueryRow(ctx, `update outbox_checkpoints set recorder_pid = pg_backend_pid(), recorder_started = `+backendStart+`
		where slot_name = $1 and epoch = $2 returning batch_seq`, r.cfg.Slot, r.epoch).Scan(&seq)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, ErrFenced
	case err != nil:
		return false, fmt.Errorf("read batch_seq: %w", err)
	}
	return seq > r.seq, nil
}

func (r *Recorder) transaction(ctx context.Context, batch []Outcomes, mark Mark) error {
	b := &pgx.Batch{}
	b.Queue("begin")
	b.Queue(updateCheckpoint, r.cfg.Slot, r.epoch, r.seq, mark.Prefix.LSN, mark.Prefix.Index, mark.LSN)
	for i := range batch {
		for j := range batch[i].Rows {
			if o := &batch[i].Rows[j]; o.Status == Dead {
				r.queueDead(b, o)
			}
		}
	}
	res := r.conn.SendBatch(ctx, b)
	if _, err := res.Exec(); err != nil {
		_ = res.Close() // the same error
		return fmt.Errorf("begin: %w", err)
	}
	tag, err := res.Exec()
	if cerr := res.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return r.refused(ctx)
	}
	if len(batch) > 0 {
		var n int
		r.buf, n, err = copyRows(r.buf[:0], batch, r.epoch, r.uuidIDs, r.clock)
		if err != nil {
			return err
		}
		tag, err := r.conn.PgConn().CopyFrom(ctx, bytes.NewReader(r.buf), copyLog)
		if err != nil {
			return fmt.Errorf("copy to the log: %w", err)
		}
		if tag.RowsAffected() != int64(n) {
			return fmt.Errorf("copy to the log: %d rows of %d arrived", tag.RowsAffected(), n)
		}
		if cap(r.buf) > 16<<20 {
			r.buf = nil
		}
	}
	if _, err := r.conn.Exec(ctx, "commit"); err != nil {
		// Whether it went through is asked on a new connection.
		closeNow(r.conn)
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

func (r *Recorder) queueDead(b *pgx.Batch, o *Outcome) {
	d := o.Dead
	var id any = o.EventID
	if o.EventID == "" {
		id = nil
	}
	var tried any
	if !d.TriedAt.IsZero() {
		tried = d.TriedAt.Add(r.clock)
	}
	b.Queue(insertDead, o.Processor, o.Position.LSN, o.Position.Index, id, d.AggregateHash, d.Attempts, d.Tries,
		tried, cleanText(o.Error), string(d.Event), d.Payload)
}

// refused finds out why no checkpoint row was ours to change.
func (r *Recorder) refused(ctx context.Context) error {
	var epoch int32
	var seq int64
	err := r.conn.QueryRow(ctx, `select epoch, batch_seq from outbox_checkpoints where slot_name = $1`, r.cfg.Slot).Scan(&epoch, &seq)
	if err == nil && epoch == r.epoch {
		return fmt.Errorf("the ledger is at batch %d, ours is behind %d: %w", seq, r.seq, ErrFenced)
	}
	return ErrFenced
}

// rollback ends what a failed attempt left open, or closes the connection.
func (r *Recorder) rollback(ctx context.Context) {
	if r.conn.IsClosed() || r.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := r.conn.Exec(ctx, "rollback"); err != nil {
		closeNow(r.conn)
	}
}

func closeNow(c *pgx.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.Close(ctx) // a connection in an unknown state is not asked anything more
}

func (r *Recorder) makePartitions(ctx context.Context) error {
	_, err := r.conn.Exec(ctx, "select outbox_make_partitions()")
	return err
}

// missingPartition: 23514, "no partition of relation … found for row".
func missingPartition(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == "23514" && strings.Contains(e.Routine, "ExecFindPartition")
}

// ServerStopping says that the server lets nobody in any more (57P03, cannot_connect_now). The end of a session says
// less: a person may have ended it, or idle_session_timeout; whoever connects again learns which it was.
func ServerStopping(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == "57P03"
}
