package ledger

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// SentFromPlace is the size from which a value is not copied into the buffer of a COPY.
const SentFromPlace = largeValue

// NotReady is the error of a slot without a checkpoint from which a session can start.
var NotReady = errNotReady

// OfEpoch is a recorder's connection of a session with this epoch, which is away.
func OfEpoch(cfg Config, epoch int32) *BatchWriter { return &BatchWriter{cfg: cfg, epoch: epoch} }

// Reconnect does what Commit does with a connection that was lost: it reports whether the last batch was committed.
func (w *BatchWriter) Reconnect(ctx context.Context) (bool, error) {
	if err := w.connect(ctx); err != nil {
		return false, err
	}
	return w.committed(ctx)
}

// Ping asks whether the connection lives.
func (w *BatchWriter) Ping(ctx context.Context) error { return w.conn.Ping(ctx) }

// PlanOfReads sets the planner up for one transaction of reads.
var PlanOfReads = planParkedLocal

// Statements are those of a read, by name.
func (r *ParkedReader) Statements() map[string]string {
	return map[string]string{"fresh": r.sql.fresh, "first": r.sql.first, "heads": r.sql.heads, "due": r.sql.due, "left": r.sql.left}
}

// Pool is where it reads.
func (r *ParkedReader) Pool() *pgxpool.Pool { return r.pool }

// TextFor is statement.
func (s Schema) TextFor(text string) string { return s.statement(text) }

// QuotedName is quote.
func (s Schema) QuotedName(name string) string { return s.quote(name) }

// MakeDueStatement is the statement of MakeDue.
const MakeDueStatement = makeDue

// ReadOldestStatement is the statement of ReadOldest, for the schema public.
var ReadOldestStatement = Schema("public").statement(readOldest)

// PlanOfChunks sets the planner up for a chunk of the cleanup, and ChunkStatement is its statement.
const PlanOfChunks = planChunk

func (r *OutboxRows) ChunkStatement(q *ChunkQuery) string { return r.statement(q) }
