package connector

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
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

// refused tells a login that the server turns away, which the same DSN will meet again, from a server that is away.
// Once a session has run it is taken for a password that is being changed.
func (c *Connector) refused(err error) error {
	var pg *pgconn.PgError
	if c.ran || !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "28000", "28P01":
		return exitError{77, fmt.Errorf("%w; correct user and password of source.dsn, or pg_hba.conf of the server", err)}
	case "3D000":
		return exitError{78, fmt.Errorf("%w; correct the database of source.dsn", err)}
	}
	return err
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
