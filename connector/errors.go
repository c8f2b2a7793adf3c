package connector

import (
	"context"
	"errors"
	"net"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// fatal reports whether the process should end with err: no further try can mend it, or PostgreSQL could not be reached for
// a first session. After the first session the connector waits for PostgreSQL for ever.
func (c *Connector) fatal(err error) bool {
	code := exitcode.Of(err)
	return code.Final() || code == exitcode.Unavailable && !c.progress.streamedBefore
}

// explainRefusal explains why the server explainRefusal a connection. key is that of the connection string, which the server would refuse each
// time. A login that has worked before is an exception: somebody may be about to change it, so that its error stays as it is,
// and the connector tries again.
func (c *Connector) explainRefusal(err error, key string) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || c.progress.streamedBefore && slices.Contains([]string{"28000", "28P01", "3D000", "42501"}, pg.Code) {
		return err
	}
	dsn := c.cfg.Source.DSN
	if key == replication.ReplicationDSNKey {
		dsn = c.cfg.Source.ReplicationDSN
	}
	config, parseErr := replication.ParseDSN(key, dsn)
	switch {
	case parseErr != nil:
		return parseErr
	case key == replication.ReplicationDSNKey:
		return replication.ExplainStreamRefusal(config, err)
	}
	return replication.ExplainRefusal(key, config, err)
}

// Unavailable attaches the exit code for "PostgreSQL cannot be reached" to an error that says so. It returns other errors, and
// nil, as they are.
func Unavailable(err error) error {
	if err != nil && Unreachable(err) {
		return exitcode.Errorf(exitcode.Unavailable, "PostgreSQL cannot be reached: %w", err)
	}
	return err
}

// Unreachable reports whether an error means that no connection to PostgreSQL could be had.
func Unreachable(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return len(pg.Code) == 5 && pg.Code[:3] == "57P" // starting up or shutting down
	}
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded)
}
