package provision

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// WithConn calls f with a session for SQL.
func WithConn(ctx context.Context, dsn string, s Source, f func(*pgx.Conn) error) error {
	if err := s.checkNames(); err != nil {
		return err
	}
	conn, err := connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return advisory.ExplainTableLock(ctx, conn, f(conn))
}

// connect opens a session for SQL of a command. It does not wait for the lock of a table for ever, because it says nothing
// meanwhile.
func connect(ctx context.Context, text string) (*pgx.Conn, error) {
	config, err := replication.SQLConfig("the dsn", text)
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["lock_timeout"] = "1min"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", replication.Refused("the dsn", &config.Config, err))
	}
	if err := replication.CheckDirect(ctx, "the dsn", conn.PgConn(), config.RuntimeParams); err != nil {
		closeConn(ctx, conn)
		return nil, err
	}
	return conn, nil
}

// connectReplication opens a connection for commands. What it does when its context ends matters: a server that is
// creating a slot does not notice that its client has gone, and would make the slot in the end, for nobody. So it is
// sent a cancel request.
func connectReplication(ctx context.Context, dsn string) (*pgconn.PgConn, error) {
	config, err := replication.ParseDSN(replication.ReplicationDSNKey, dsn)
	if err != nil {
		return nil, err
	}
	replication.DetectDeadPeer(config)
	ledger.Pin(config)
	config.RuntimeParams["replication"] = "database"
	config.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: closeTimeout}
	}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect for replication: %w", replication.StreamRefused(config, err))
	}
	if err := replication.CheckDirect(ctx, replication.ReplicationDSNKey, conn, nil); err != nil {
		closeReplication(ctx, conn)
		return nil, err
	}
	return conn, nil
}

// closeTimeout bounds the farewell to a server that may be away.
const closeTimeout = 5 * time.Second

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // nothing is lost with it
}

func closeReplication(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // as above
}
