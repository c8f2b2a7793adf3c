package checkpoint

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

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const copyLog = "copy ledger.outbox_delivery_log (" + logColumns + ") from stdin (format binary)"

// The epoch fences a session that was taken over; batch_seq refuses a batch that is committed already.
const updateCheckpoint = `update ledger.outbox_checkpoints set prefix_lsn = $4, prefix_index = $5, confirmed_lsn = $6,
	batch_seq = batch_seq + 1, updated_at = clock_timestamp()
	where slot_name = $1 and epoch = $2 and batch_seq = $3 and state = 'ready'`

// LedgerConfig is what a ledger in PostgreSQL needs. All of it is required.
type LedgerConfig struct {
	// Connect opens the recorder's own connection: one that ledger.Pin has seen, with a lock_timeout.
	Connect func(context.Context) (*pgx.Conn, error)
	Schema  ledger.Schema
	Slot    string
	Owner   string // who we are, for people who look at the checkpoint
}

// postgres is the ledger's tables over one connection.
//
// A COMMIT whose answer is lost may have gone through or not. The checkpoint's batch_seq, which every transaction
// raises by one, tells after reconnecting.
type postgres struct {
	cfg     LedgerConfig
	sql     statements
	conn    *pgx.Conn
	epoch   int32
	seq     int64 // batch_seq of the last batch that is known to be committed
	uuidIDs bool
	narrow  bool          // the database's encoding does not have all characters
	clock   time.Duration // PostgreSQL's clock minus ours
	buf     []byte
}

// statements are those of every batch, with the ledger's schema.
type statements struct {
	copyLog, updateCheckpoint, copyParked, updateParked, deleteParked string
}

func statementsFor(s ledger.Schema) statements {
	return statements{
		copyLog: s.SQL(copyLog), updateCheckpoint: s.SQL(updateCheckpoint),
		copyParked: s.SQL(copyParked), updateParked: s.SQL(updateParked), deleteParked: s.SQL(deleteParked),
	}
}

// OpenLedger connects, takes the ledger over by raising the epoch, and reads what is settled. The caller must hold the
// slot: START_REPLICATION has succeeded.
func OpenLedger(ctx context.Context, cfg LedgerConfig) (Ledger, Start, error) {
	l := &postgres{cfg: cfg, sql: statementsFor(cfg.Schema)}
	if err := l.connect(ctx); err != nil {
		return nil, Start{}, err
	}
	start, err := l.open(ctx)
	if err != nil {
		l.Close()
		return nil, Start{}, err
	}
	return l, start, nil
}

// Close ends the connection.
func (l *postgres) Close() {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.conn.Close(ctx) // there is nothing to lose: what matters was committed
	l.conn = nil
}

// planFor makes the planner take the indexes of a queue, whose statistics are wrong most of the time. It is less than
// connector.PlanParked: the same few statements come again and again, and are planned once.
const planFor = "set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; set jit = off"

func (l *postgres) connect(ctx context.Context) error {
	conn, err := l.cfg.Connect(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	l.Close()
	l.conn = conn
	encoding := conn.PgConn().ParameterStatus("server_encoding")
	l.narrow = encoding != "UTF8" && encoding != "SQL_ASCII"
	if _, err := conn.Exec(ctx, planFor); err != nil {
		return fmt.Errorf("set up the connection: %w", err)
	}
	err = conn.QueryRow(ctx, `select atttypid = 'uuid'::regtype from pg_attribute
		where attrelid = $1::text::regclass and attname = 'event_id'`, l.cfg.Schema.Name("outbox_delivery_log")).Scan(&l.uuidIDs)
	if err != nil {
		return fmt.Errorf("look at the ledger: %w", err)
	}
	return l.measureClock(ctx)
}

// Commit is Ledger's.
func (l *postgres) Commit(ctx context.Context, b Batch) error {
	err := l.attempt(ctx, b)
	if err == nil {
		l.seq++
	}
	return err
}

// attempt tries the batch once. After an error whose outcome is unknown it asks the ledger.
func (l *postgres) attempt(ctx context.Context, b Batch) error {
	if l.conn == nil || l.conn.IsClosed() {
		if err := l.connect(ctx); err != nil {
			return err
		}
		done, err := l.committed(ctx)
		if done || err != nil {
			return err
		}
	}
	l.rollback(ctx) // what the attempt before left open
	if l.narrow {
		asciiErrors(b.Outcomes)
	}
	err := l.transaction(ctx, b)
	if !missingPartition(err) {
		return err
	}
	l.rollback(ctx)
	if err := l.makePartitions(ctx); err != nil {
		return fmt.Errorf("make log partitions: %w", err)
	}
	return l.transaction(ctx, b)
}

// committed says whether the batch at hand went through: by its batch_seq. From then on the new connection is the one
// that a successor has to end.
func (l *postgres) committed(ctx context.Context) (bool, error) {
	if err := l.endPredecessor(ctx); err != nil { // our own backend of before may still be at work
		return false, err
	}
	var seq int64
	// The row lock waits for that backend's transaction to end.
	err := l.conn.QueryRow(ctx, l.cfg.Schema.SQL(`update ledger.outbox_checkpoints set recorder_pid = pg_backend_pid(), recorder_started = `+backendStart+`
		where slot_name = $1 and epoch = $2 returning batch_seq`), l.cfg.Slot, l.epoch).Scan(&seq)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, ErrFenced
	case err != nil:
		return false, fmt.Errorf("read batch_seq: %w", err)
	}
	return seq > l.seq, nil
}

func (l *postgres) transaction(ctx context.Context, b Batch) error {
	q := &pgx.Batch{}
	q.Queue("begin")
	q.Queue(l.sql.updateCheckpoint, l.cfg.Slot, l.epoch, l.seq, b.Mark.Prefix.LSN, b.Mark.Prefix.Index, b.Mark.LSN)
	res := l.conn.SendBatch(ctx, q)
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
		return l.refused(ctx)
	}
	if err := l.writeLog(ctx, b.Outcomes); err != nil {
		return err
	}
	if err := l.writeParked(ctx, b.Outcomes); err != nil {
		return err
	}
	if _, err := l.conn.Exec(ctx, "commit"); err != nil {
		// Whether it went through is asked on a new connection.
		closeNow(l.conn)
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

func (l *postgres) writeLog(ctx context.Context, batch []Outcomes) error {
	buf, n, err := copyRows(l.buf[:0], batch, l.epoch, l.uuidIDs, l.clock)
	if err != nil {
		return err
	}
	l.keep(buf)
	return l.copy(ctx, "the log", l.sql.copyLog, bytes.NewReader(buf), n)
}

// keep keeps a buffer for the next rows, unless it is large.
func (l *postgres) keep(buf []byte) {
	if l.buf = buf; cap(buf) > 16<<20 {
		l.buf = nil
	}
}

// copy sends n rows.
func (l *postgres) copy(ctx context.Context, to, sql string, rows io.Reader, n int) error {
	if n == 0 {
		return nil
	}
	tag, err := l.conn.PgConn().CopyFrom(ctx, rows, sql)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", to, err)
	}
	if tag.RowsAffected() != int64(n) {
		return fmt.Errorf("copy to %s: %d rows of %d arrived", to, tag.RowsAffected(), n)
	}
	return nil
}

// refused finds out why no checkpoint row was ours to change.
func (l *postgres) refused(ctx context.Context) error {
	var epoch int32
	var seq int64
	err := l.conn.QueryRow(ctx, l.cfg.Schema.SQL(`select epoch, batch_seq from ledger.outbox_checkpoints where slot_name = $1`), l.cfg.Slot).Scan(&epoch, &seq)
	if err == nil && epoch == l.epoch {
		return fmt.Errorf("the ledger is at batch %d, ours is behind %d: %w", seq, l.seq, ErrFenced)
	}
	return ErrFenced
}

// rollback ends what a failed attempt left open, or closes the connection.
func (l *postgres) rollback(ctx context.Context) {
	if l.conn.IsClosed() || l.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := l.conn.Exec(ctx, "rollback"); err != nil {
		closeNow(l.conn)
	}
}

func closeNow(c *pgx.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.Close(ctx) // a connection in an unknown state is not asked anything more
}

func (l *postgres) makePartitions(ctx context.Context) error {
	_, err := l.conn.Exec(ctx, l.cfg.Schema.SQL(ledger.MakePartitions))
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
