package replication

import (
	"context"
	"errors"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// ExplainRefusal looks at the error of an attempt to connect. If the server refused the connection, and would refuse the same
// connection string each time, the result has an exit code and names the remedy. Any other error, such as that of a server that
// is away, comes back as it is.
func ExplainRefusal(what string, config *pgconn.Config, err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if insistsOnTLS(config) && strings.Contains(err.Error(), "server refused TLS connection") && !strings.Contains(err.Error(), "dial error") {
			return exitcode.Errorf(exitcode.Config, "%s asks for TLS by its sslmode, which the server does not speak; set ssl = on there, or, where nobody can listen on the way, sslmode=disable here", what)
		}
		return err
	}
	name := parameterOf(pg.Message)
	switch pg.Code {
	case "28000", "28P01":
		return exitcode.Errorf(exitcode.Privilege, "%s; correct user and password of %s, or pg_hba.conf of the server", pg.Message, what)
	case "3D000":
		return exitcode.Errorf(exitcode.Config, "%s; correct the database of %s", pg.Message, what)
	case "08P01": // protocol_violation; poolers use it for what they do not support
		if strings.Contains(pg.Message, "unsupported startup parameter") {
			return exitcode.Errorf(exitcode.Config, "%s leads to a connection pooler, which refuses the startup parameter %s; %s", what, name, connectDirectly)
		}
	case "42704": // unrecognized configuration parameter
		return exitcode.Errorf(exitcode.Config, "%s has the parameter %s, which the server does not know; remove it", what, name)
	case "22023", "22P02": // an invalid value, which the message repeats
		return exitcode.Errorf(exitcode.Config, "%s has a value for the parameter %s that the server refuses; correct or remove it", what, parameterWith(config, name))
	case "42601": // invalid command-line argument for server process
		if pg.SeverityUnlocalized == "FATAL" {
			return exitcode.Errorf(exitcode.Config, "%s has a value for the parameter options that the server does not understand; correct or remove it", what)
		}
	case "0A000": // conversion between UTF8 and MULE_INTERNAL is not supported
		if pg.SeverityUnlocalized == "FATAL" {
			return exitcode.Errorf(exitcode.Config, "%s: %s, and nothing else is spoken; restore a dump of the database into one of encoding UTF8, see docs/encodings.md", what, pg.Message)
		}
	case "55P02": // cannot be changed now, or without a restart
		return exitcode.Errorf(exitcode.Config, "%s has the parameter %s, which cannot be set for a session; remove it", what, name)
	case "42501":
		for _, role := range []string{"role", "session_authorization"} { // for these the message has the value, and not the name
			if setsParameter(config, role) {
				name = role
			}
		}
		if setsParameter(config, name) {
			return exitcode.Errorf(exitcode.Privilege, "%s has the parameter %s, which its user may not set; remove it, or let a superuser grant it", what, name)
		}
		return exitcode.Errorf(exitcode.Privilege, "%s; correct user and password of %s, or pg_hba.conf of the server", pg.Message, what)
	}
	return err
}

// ExplainStreamRefusal is ExplainRefusal for a replication connection. It also explains that a role may not replicate.
func ExplainStreamRefusal(config *pgconn.Config, err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42501" && !setsParameter(config, parameterOf(pg.Message)) {
		return MayNotReplicate(config.User)
	}
	return ExplainRefusal(ReplicationDSNKey, config, err)
}

// MayNotReplicate is the error of a role that may not replicate.
func MayNotReplicate(user string) error {
	return exitcode.Errorf(exitcode.Privilege, "role %q may not replicate; alter role %s replication (on RDS: grant rds_replication to %[2]s)",
		user, pgx.Identifier{user}.Sanitize())
}

// unnamedParameter takes the place of a parameter's name in a message if we do not know the name.
const unnamedParameter = "that the server's log names"

var quotedName = regexp.MustCompile(`["«„“”']([A-Za-z0-9_.+-]{1,63})["»“”']|startup parameter(?: in options)?: ([A-Za-z0-9_.+-]{1,63})`)

// parameterOf finds the name of the parameter that a message of the server is about. The message may be in any language. What
// follows the name may be the parameter's value, which must not be repeated.
func parameterOf(message string) string {
	m := quotedName.FindStringSubmatch(message)
	if m == nil {
		return unnamedParameter
	}
	return m[1] + m[2]
}

// parameterWith finds the name of a parameter by what a message of the server names: the parameter itself, or only its value, as
// in: role "x" does not exist.
func parameterWith(config *pgconn.Config, nameOrValue string) string {
	if setsParameter(config, nameOrValue) {
		return nameOrValue
	}
	for name, value := range config.RuntimeParams {
		if value == nameOrValue {
			return name
		}
	}
	return unnamedParameter
}

// setsParameter reports whether a connection string sets a parameter.
func setsParameter(config *pgconn.Config, name string) bool {
	for p := range config.RuntimeParams {
		if strings.EqualFold(p, name) {
			return true
		}
	}
	return name != unnamedParameter && strings.Contains(config.RuntimeParams["options"], name)
}

// insistsOnTLS reports whether a connection without TLS is never tried.
func insistsOnTLS(config *pgconn.Config) bool {
	return config.TLSConfig != nil && !slices.ContainsFunc(config.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.TLSConfig == nil })
}

// ExplainUnreachable adds to an error for which Unreachable is true that PostgreSQL cannot be reached, with the exit code for that.
// It returns every other error, and nil, as it is.
func ExplainUnreachable(err error) error {
	if err != nil && Unreachable(err) {
		return exitcode.Errorf(exitcode.Unavailable, "PostgreSQL cannot be reached: %w", err)
	}
	return err
}

// Unreachable reports whether an error means that PostgreSQL could not be reached, did not answer in time, or is starting up or
// shutting down.
func Unreachable(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return len(pg.Code) == 5 && pg.Code[:3] == "57P" // operator intervention: the server starts up or shuts down
	}
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded)
}
