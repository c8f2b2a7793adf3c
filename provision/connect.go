package provision

import (
	"cmp"
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

// WithConn opens a connection for SQL, calls f with it, and closes it. If f waits for the lock of a table in vain, the error says
// who holds the lock.
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

// connect opens a connection for the SQL of a command. Its statements wait for the lock of a table for a minute at most, because
// the command shows nothing while it waits.
func connect(ctx context.Context, text string) (*pgx.Conn, error) {
	return connectAs(ctx, "the dsn", text)
}

// connectTimeout is how long a server may take to accept a login, unless connect_timeout of the connection string says so. One that was
// frozen accepts connections, by its kernel, and never answers.
const connectTimeout = 10 * time.Second

// connectAs does what connect does. what is the connection string's name in messages.
func connectAs(ctx context.Context, what, text string) (*pgx.Conn, error) {
	config, err := replication.SQLConfig(what, text)
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["lock_timeout"] = "1min"
	config.ConnectTimeout = cmp.Or(config.ConnectTimeout, connectTimeout)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", replication.ExplainRefusal(what, &config.Config, err))
	}
	if err := replication.CheckDirect(ctx, what, conn.PgConn(), config.RuntimeParams); err != nil {
		closeConn(ctx, conn)
		return nil, err
	}
	return conn, nil
}

// connectReplication opens a connection for replication commands, such as those that create and drop a slot.
//
// If the context of a command ends, the connection sends a cancel request. To close the connection would not be enough: a
// server that is creating a slot does not notice that its client has gone, and would still make the slot, for nobody.
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
		return nil, fmt.Errorf("connect for replication: %w", replication.ExplainStreamRefusal(config, err))
	}
	if err := replication.CheckDirect(ctx, replication.ReplicationDSNKey, conn, nil); err != nil {
		closeReplication(ctx, conn)
		return nil, err
	}
	return conn, nil
}

// CheckLogins connects with both connection strings, looks whether a session could begin (see Preflight), and changes nothing. It uses one
// connection after the other.
func CheckLogins(ctx context.Context, dsn, replicationDSN string, s Source) error {
	if err := s.checkNames(); err != nil {
		return err
	}
	stream, err := replication.ParseDSN(replication.ReplicationDSNKey, replicationDSN)
	if err != nil {
		return err
	}
	conn, err := connectAs(ctx, replication.SourceDSNKey, dsn)
	if err != nil {
		return err
	}
	_, err = Preflight(ctx, conn, PreflightConfig{Source: s, ReplicationUser: stream.User})
	closeConn(ctx, conn)
	if err != nil {
		return err
	}
	replicating, err := connectReplication(ctx, replicationDSN)
	if err != nil {
		return err
	}
	closeReplication(ctx, replicating)
	return nil
}

// closeTimeout bounds what we still do over a connection after a failure or at the end: the server may be away.
const closeTimeout = 5 * time.Second

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // everything is committed already
}

func closeReplication(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // the commands have been answered already
}
