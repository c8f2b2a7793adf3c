package cleanup

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// Conn is a connection or a pool that ledger.Pin has set up.
type Conn interface {
	ledger.Querier
	ledger.Beginner
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

var _ Conn = (*pgx.Conn)(nil)

// Postgres is the Database of a real server.
type Postgres struct {
	Conn Conn
	// Source names outbox and ledger, and says which rights the login needs.
	Source provision.Source
}

func (p *Postgres) ledger() ledger.Schema { return ledger.Schema(p.Source.LedgerSchema) }

// Lacking returns the statements by which the owner of the tables gives the rights that the login lacks for the cleanup.
func (p *Postgres) Lacking(ctx context.Context) ([]string, error) {
	return provision.LackingCleanup(ctx, p.Conn, p.Source)
}

// OpenOutbox looks at the outbox's columns. It reports whether the login may delete from it.
func (p *Postgres) OpenOutbox(ctx context.Context) (outbox Outbox, may bool, err error) {
	rows, err := p.ledger().OpenOutboxRows(ctx, p.Conn, p.Source.OutboxTable())
	if err != nil {
		return nil, false, err
	}
	return outboxOver{rows, p.Conn}, rows.Grant() == "", nil
}

// DropLogPartition drops the oldest partition of the log if it may go, and returns the partitions that it has looked at.
func (p *Postgres) DropLogPartition(ctx context.Context, cutoff ledger.LogCutoff) ([]ledger.LogPartition, error) {
	return p.ledger().DropLogPartition(ctx, p.Conn, cutoff)
}

// PlanLogDrop returns all partitions of the log with what would become of them.
func (p *Postgres) PlanLogDrop(ctx context.Context, cutoff ledger.LogCutoff) ([]ledger.LogPartition, error) {
	return p.ledger().PlanLogDrop(ctx, p.Conn, cutoff)
}

// WriteReport writes a report into outbox_retention, as JSON.
func (p *Postgres) WriteReport(ctx context.Context, report []byte) error {
	return p.ledger().WriteRetentionReport(ctx, p.Conn, report)
}

// DeleteMetrics deletes some windows of outbox_metrics that ended this long ago, and returns how many.
func (p *Postgres) DeleteMetrics(ctx context.Context, age time.Duration, limit int) (int64, error) {
	n, err := p.ledger().DeleteMetrics(ctx, p.Conn, age, limit)
	if err != nil {
		return 0, fmt.Errorf("old windows of outbox_metrics: %w", err)
	}
	return n, nil
}

// DeadRows returns how many deleted rows the outbox and outbox_parked have, and what keeps vacuum from them.
func (p *Postgres) DeadRows(ctx context.Context) ([]ledger.DeadRows, error) {
	return p.ledger().ReadDeadRows(ctx, p.Conn, p.Source.OutboxTable())
}

// outboxOver is an Outbox over a connection.
type outboxOver struct {
	rows *ledger.OutboxRows
	conn Conn
}

func (o outboxOver) DeleteChunk(ctx context.Context, q ledger.ChunkQuery) (ledger.Chunk, error) {
	return o.rows.DeleteChunk(ctx, o.conn, q)
}

func (o outboxOver) Zoneless() bool { return o.rows.Zoneless() }

func (o outboxOver) OldestRow(ctx context.Context, q ledger.ChunkQuery) (ledger.OutboxKey, bool, error) {
	return o.rows.OldestRow(ctx, o.conn, q)
}

func (o outboxOver) ByDay() bool { return o.rows.ByDay() }

func (o outboxOver) Days(ctx context.Context, age time.Duration) ([]ledger.OutboxDay, error) {
	return o.rows.Days(ctx, o.conn, age)
}

func (o outboxOver) DropDay(ctx context.Context, day ledger.OutboxDay, rows ledger.DayRows, patience time.Duration) (ledger.DayOutcome, string, error) {
	return o.rows.DropDay(ctx, o.conn, day, rows, patience)
}
