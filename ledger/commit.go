package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

const copyLog = "copy ledger.outbox_delivery_log (" + logColumns + ") from stdin (format binary)"

// The epoch fences a session that was taken over; batch_seq refuses a batch that is committed already.
const updateCheckpoint = `update ledger.outbox_checkpoints set prefix_lsn = $4, prefix_index = $5, confirmed_lsn = $6,
	batch_seq = batch_seq + 1, updated_at = clock_timestamp()
	where slot_name = $1 and epoch = $2 and batch_seq = $3 and state = 'ready'`

// Commit writes the batch in one transaction; see checkpoint.Ledger.
func (w *BatchWriter) Commit(ctx context.Context, b checkpoint.Batch) error {
	err := w.attempt(ctx, b)
	if err == nil {
		w.seq++
		w.tell()
	}
	return err
}

// attempt tries the batch once. If the outcome of the try before is unknown, it asks the ledger first.
func (w *BatchWriter) attempt(ctx context.Context, b checkpoint.Batch) error {
	if w.conn == nil || w.conn.IsClosed() {
		if err := w.connect(ctx); err != nil {
			return err
		}
		done, err := w.committed(ctx)
		if done || err != nil {
			return err
		}
	}
	w.rollback(ctx) // what the attempt before left open
	err := w.transaction(ctx, b)
	if !missingPartition(err) {
		return err
	}
	w.rollback(ctx)
	if err := w.cfg.Schema.MakePartitions(ctx, w.conn); err != nil {
		return fmt.Errorf("make log partitions: %w", err)
	}
	return w.transaction(ctx, b)
}

// committed reports whether the batch at hand was committed: its batch_seq tells. It also writes the new connection into the
// checkpoint, because from now on a successor has to end this one.
func (w *BatchWriter) committed(ctx context.Context) (bool, error) {
	if err := w.endPredecessor(ctx); err != nil { // our own earlier backend may still be at work
		return false, err
	}
	var seq int64
	// The row lock waits for that backend's transaction to end.
	err := w.conn.QueryRow(ctx, w.cfg.Schema.statement(`update ledger.outbox_checkpoints set recorder_pid = pg_backend_pid(), recorder_started = `+backendStart+`
		where slot_name = $1 and epoch = $2 returning batch_seq`), w.cfg.Slot, w.epoch).Scan(&seq)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, checkpoint.ErrFenced
	case err != nil:
		return false, fmt.Errorf("read batch_seq: %w", err)
	}
	return seq > w.seq, nil
}

func (w *BatchWriter) transaction(ctx context.Context, b checkpoint.Batch) error {
	w.changed = w.changed[:0]
	q := &pgx.Batch{}
	q.Queue("begin")
	q.Queue(w.sql.updateCheckpoint, w.cfg.Slot, w.epoch, w.seq, b.Watermark.Prefix.LSN, b.Watermark.Prefix.Index, b.Watermark.LSN)
	res := w.conn.SendBatch(ctx, q)
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
		return w.refused(ctx)
	}
	if err := w.writeLog(ctx, b.Outcomes); err != nil {
		return err
	}
	if err := w.writeParked(ctx, b.Outcomes); err != nil {
		return err
	}
	if err := w.writeJobSteps(ctx, b.Outcomes); err != nil {
		return err
	}
	if _, err := w.conn.Exec(ctx, "commit"); err != nil {
		// A new connection asks whether it went through.
		closeNow(w.conn)
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

func (w *BatchWriter) writeLog(ctx context.Context, batch []checkpoint.Outcomes) error {
	buf, n, err := w.logRows(w.buf[:0], batch)
	if err != nil {
		return err
	}
	w.keep(buf)
	return w.copy(ctx, "the log", w.sql.copyLog, bytes.NewReader(buf), n)
}

// keep keeps a buffer for the next rows, unless it is larger than 16 MiB.
func (w *BatchWriter) keep(buf []byte) {
	if w.buf = buf; cap(buf) > 16<<20 {
		w.buf = nil
	}
}

// copy sends n rows by COPY.
func (w *BatchWriter) copy(ctx context.Context, to, sql string, rows io.Reader, n int) error {
	if n == 0 {
		return nil
	}
	tag, err := w.conn.PgConn().CopyFrom(ctx, rows, sql)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", to, err)
	}
	if tag.RowsAffected() != int64(n) {
		return fmt.Errorf("copy to %s: %d rows of %d arrived", to, tag.RowsAffected(), n)
	}
	return nil
}

// refused finds out why the update of the checkpoint found no row.
func (w *BatchWriter) refused(ctx context.Context) error {
	c, err := w.cfg.Schema.selectCheckpoint(ctx, w.conn, w.cfg.Slot)
	if err == nil && c != nil && c.Epoch == w.epoch {
		return fmt.Errorf("the ledger is at batch %d, ours is behind %d: %w", c.batchSeq, w.seq, checkpoint.ErrFenced)
	}
	return checkpoint.ErrFenced
}

// rollback ends what a failed attempt left open, or closes the connection.
func (w *BatchWriter) rollback(ctx context.Context) {
	if w.conn.IsClosed() || w.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := w.conn.Exec(ctx, "rollback"); err != nil {
		closeNow(w.conn)
	}
}

// closeNow closes a connection whose state is unknown, without a word to the server.
func closeNow(c *pgx.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.Close(ctx) // nothing more is asked of it
}

// missingPartition reports SQLSTATE 23514, "no partition of relation … found for row".
func missingPartition(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == "23514" && strings.Contains(e.Routine, "ExecFindPartition")
}
