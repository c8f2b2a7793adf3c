package connector

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// exitError is an error that no further try can mend, with the exit code of DESIGN.md section 8.
type exitError struct {
	code int
	error
}

// ExitCode is the process's exit code.
func (e exitError) ExitCode() int { return e.code }

func (e exitError) Unwrap() error { return e.error }

// lost is a slot that is lost, or not ours.
func lost(format string, args ...any) error { return exitError{70, fmt.Errorf(format, args...)} }

// fatal says that the process should end with err. A wrong password is a mistake before the first session, and a
// rotation that is under way after it.
func (c *Connector) fatal(err error) bool {
	var coded interface{ ExitCode() int }
	if !errors.As(err, &coded) {
		return false
	}
	switch coded.ExitCode() {
	case 70, 77, 78:
		return true
	}
	return !c.ran
}

// The names of the connection strings in messages.
const (
	sourceDSN      = "source.dsn"
	replicationDSN = "source.replication_dsn"
)

// refused tells a connection that the server turns away, as the same DSN will be each time, from a server that is away. A login
// that has worked before is taken for one that is being changed, and is tried again.
func (c *Connector) refused(err error, what string) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || c.ran && slices.Contains([]string{"28000", "28P01", "3D000", "42501"}, pg.Code) {
		return err
	}
	text, refused := c.cfg.Source.DSN, func(config *pgconn.Config, err error) error { return replication.Refused(what, config, err) }
	if what == replicationDSN {
		text, refused = c.cfg.Source.ReplicationDSN, replication.StreamRefused
	}
	config, parseErr := replication.ParseDSN(what, text)
	if parseErr != nil {
		return parseErr
	}
	return refused(config, err)
}

// Unreachable says that PostgreSQL could not be talked to at all.
func Unreachable(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return len(pg.Code) == 5 && pg.Code[:3] == "57P" // starting up or shutting down
	}
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded)
}
