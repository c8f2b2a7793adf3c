package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Config is what Open needs. All of it is required, but for Changed.
type Config struct {
	// Connect opens the recorder's own connection: one that Pin has set up, with a lock_timeout.
	Connect func(context.Context) (*pgx.Conn, error)
	Schema  Schema
	Slot    string
	Owner   string // this process, for people who look at the checkpoint
	// Changed is called after each batch that was committed and has changed rows of outbox_parked, with one change for each sink. It may
	// not keep the slice. It is called once for each batch, also if the answer of the COMMIT was lost.
	Changed func([]RowChange)
}

// BatchWriter commits the recorder's batches to the ledger's tables, over one connection of its own. It is a checkpoint.Ledger. For
// one goroutine at a time.
//
// The answer to a COMMIT may be lost, and then nobody knows whether the transaction went through. Each transaction therefore
// raises the checkpoint's batch_seq by one, and after reconnecting BatchWriter reads it.
type BatchWriter struct {
	cfg     Config
	sql     statements
	conn    *pgx.Conn
	epoch   int32
	seq     int64         // batch_seq of the last batch that is known to be committed
	uuidIDs bool          // event_id is a uuid; else it is text
	narrow  bool          // the database's encoding does not have all characters
	clock   time.Duration // PostgreSQL's clock minus ours
	buf     []byte        // of the rows of a COPY, used again
	changed []RowChange   // what the last transaction has changed, whether it is committed or not
}

// statements are the statements of every batch, with the ledger's schema in them.
type statements struct {
	copyLog, updateCheckpoint, copyParked, updateParked, deleteParked string
}

func newStatements(s Schema) statements {
	return statements{
		copyLog: s.statement(copyLog), updateCheckpoint: s.statement(updateCheckpoint),
		copyParked: s.statement(copyParked), updateParked: s.statement(updateParked), deleteParked: s.statement(deleteParked),
	}
}

// Open connects, takes the ledger over by raising its epoch, and reads what is settled. The caller must hold the slot
// (START_REPLICATION has succeeded), because the slot is the lock between processes. The caller closes the BatchWriter.
func Open(ctx context.Context, cfg Config) (*BatchWriter, Start, error) {
	w := &BatchWriter{cfg: cfg, sql: newStatements(cfg.Schema)}
	if err := w.connect(ctx); err != nil {
		return nil, Start{}, err
	}
	start, err := w.takeOver(ctx)
	if err != nil {
		w.Close()
		return nil, Start{}, err
	}
	return w, start, nil
}

// Close ends the connection.
func (w *BatchWriter) Close() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // there is nothing to lose: what matters was committed
	w.conn = nil
}

func (w *BatchWriter) connect(ctx context.Context) error {
	conn, err := w.cfg.Connect(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	w.Close()
	w.conn = conn
	encoding := conn.PgConn().ParameterStatus("server_encoding")
	w.narrow = encoding != "UTF8" && encoding != "SQL_ASCII"
	if _, err := conn.Exec(ctx, planBatches); err != nil {
		return fmt.Errorf("set up the connection: %w", err)
	}
	if w.uuidIDs, err = w.cfg.Schema.uuidIDs(ctx, conn, "outbox_delivery_log"); err != nil {
		return fmt.Errorf("look at the ledger: %w", err)
	}
	return w.measureClock(ctx)
}

// uuidIDs reports whether event_id of this table of the ledger is a uuid; else it is text.
func (s Schema) uuidIDs(ctx context.Context, db Querier, table string) (is bool, err error) {
	err = db.QueryRow(ctx, `select atttypid = 'uuid'::regtype from pg_attribute
		where attrelid = $1::text::regclass and attname = 'event_id'`, s.quote(table)).Scan(&is)
	return is, err
}

// measureClock measures how far PostgreSQL's clock is ahead of ours, so that the times in the log are PostgreSQL's.
func (w *BatchWriter) measureClock(ctx context.Context) error {
	var theirs time.Time
	sent := time.Now()
	if err := w.conn.QueryRow(ctx, "select clock_timestamp()").Scan(&theirs); err != nil {
		return fmt.Errorf("ask the server's clock: %w", err)
	}
	answered := time.Now()
	w.clock = theirs.Sub(sent.Add(answered.Sub(sent) / 2))
	return nil
}
