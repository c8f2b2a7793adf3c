package cleanup

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
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
	Conn   Conn
	Ledger ledger.Schema
	Table  ledger.OutboxTable
}

// OpenOutbox looks at the outbox's columns and at our rights.
func (p *Postgres) OpenOutbox(ctx context.Context) (Outbox, string, error) {
	rows, err := p.Ledger.OpenOutboxRows(ctx, p.Conn, p.Table)
	if err != nil {
		return nil, "", err
	}
	return outboxOver{rows, p.Conn}, rows.Grant(), nil
}

// DeleteMetrics deletes some windows of outbox_metrics that ended this long ago, and returns how many.
func (p *Postgres) DeleteMetrics(ctx context.Context, age time.Duration, limit int) (int64, error) {
	n, err := p.Ledger.DeleteMetrics(ctx, p.Conn, age, limit)
	if err != nil {
		return 0, fmt.Errorf("old windows of outbox_metrics: %w", err)
	}
	return n, nil
}

// outboxOver is an Outbox over a connection.
type outboxOver struct {
	rows *ledger.OutboxRows
	conn Conn
}

func (o outboxOver) DeleteChunk(ctx context.Context, q ledger.ChunkQuery) (ledger.Chunk, error) {
	return o.rows.DeleteChunk(ctx, o.conn, q)
}

func (o outboxOver) OldestRow(ctx context.Context, q ledger.ChunkQuery) (ledger.OutboxKey, bool, error) {
	return o.rows.OldestRow(ctx, o.conn, q)
}
