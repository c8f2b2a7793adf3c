package replication

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// The keys of the configuration that hold the connection strings. A message calls a connection string by its key, and never
// shows it.
const (
	SourceDSNKey      = "source.dsn"
	ReplicationDSNKey = "source.replication_dsn" // its default is source.dsn
)

// SQLConfig reads the connection string of a login for SQL. what is its name in messages, such as source.dsn. The result has the
// settings of every connection of ours over which SQL is sent, and the caller may add others.
func SQLConfig(what, text string) (*pgx.ConnConfig, error) {
	if _, err := ParseDSN(what, text); err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(text)
	if err != nil {
		return nil, dsnProblem(what, err)
	}
	DetectDeadPeer(&config.Config)
	ledger.Pin(&config.Config)
	return config, nil
}

// ParseDSN reads a connection string as it stands, without any setting of ours.
func ParseDSN(what, text string) (*pgconn.Config, error) {
	config, err := dsn.Parse(text)
	if err != nil {
		return nil, dsnProblem(what, err)
	}
	return config, nil
}

// dsnProblem is the error for a DSN that cannot be used. It does not repeat the DSN.
func dsnProblem(what string, err error) error {
	return exitcode.Errorf(exitcode.Config, "%s %s", what, strings.ReplaceAll(err.Error(), "\n", "; it "))
}

// connectDirectly is the remedy for a connection pooler in the way.
const connectDirectly = "connect directly to PostgreSQL, see docs/roles.md#poolers"

// CheckDirect returns an error if something that takes part in the protocol, such as PgBouncer, stands between us and the server.
// It may give us another session for each transaction, in which nothing is left of what we have prepared, locked, set and
// listened to. At best it gives us one session, without the settings that we have asked for.
func CheckDirect(ctx context.Context, what string, conn *pgconn.PgConn, settings map[string]string) error {
	// This uses the simple protocol, because a pooler may answer the parts of a prepared statement from different sessions.
	results, err := conn.Exec(ctx, "select pg_catalog.pg_backend_pid(), pg_catalog.current_setting('search_path'), pg_catalog.current_setting('row_security')").ReadAll()
	if err != nil {
		return fmt.Errorf("ask the server which session this is: %w", err)
	}
	row := results[0].Rows[0]
	if pid := conn.PID(); pid != 0 && string(row[0]) != fmt.Sprint(pid) {
		return exitcode.Errorf(exitcode.Config, "%s leads to a connection pooler: the session has another pid (%s) than the connection was told (%d); %s", what, row[0], pid, connectDirectly)
	}
	for i, name := range []string{"search_path", "row_security"} {
		if want, asked := settings[name]; asked && string(row[i+1]) != want {
			return exitcode.Errorf(exitcode.Config, "%s leads to a connection pooler: the session does not have the setting %s that the connection asked for; %s", what, name, connectDirectly)
		}
	}
	return nil
}
