package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// noSink is the name of processor 0. Its rows belong to no sink: for example a row of the outbox that is no valid event.
const noSink = "none"

// ledgerConn is a connection to the ledger of a connector, for one request of a person.
type ledgerConn struct {
	*ledger.Client
	conn *pgx.Conn
	cfg  Config
}

// withLedger connects to the ledger, calls f, and closes the connection. The error may have a method ExitCode() int.
func withLedger(ctx context.Context, c Config, f func(*ledgerConn) error) error {
	// The error of f is kept apart: if the server goes away while f works, that is not "PostgreSQL cannot be reached".
	var fault error
	err := provision.WithConn(ctx, c.DSN, c.Source, func(conn *pgx.Conn) error {
		l := &ledgerConn{conn: conn, cfg: c}
		if err := l.open(ctx); err != nil {
			return err
		}
		fault = f(l)
		return nil
	})
	if err != nil {
		return ledgerError(replication.ExplainUnreachable(err))
	}
	return ledgerError(fault)
}

// open prepares the connection and reads which sinks the connector has. It reads the ledger only after CheckOwners has found that
// the ledger's tables belong to trusted roles: reading a stranger's view would run his functions with this login's rights.
func (l *ledgerConn) open(ctx context.Context) error {
	if err := ledger.SetUpCommand(ctx, l.conn); err != nil {
		return err
	}
	if err := provision.CheckOwners(ctx, l.conn, l.cfg.Source); err != nil {
		return err
	}
	var err error
	l.Client, err = ledger.NewClient(ctx, l.conn, l.schema(), l.cfg.Name)
	return err
}

// schema is where the ledger's tables are.
func (l *ledgerConn) schema() ledger.Schema { return ledger.Schema(l.cfg.Source.LedgerSchema) }

// ledgerError adds the remedy, and the exit code where there is one, to an error of the database.
func ledgerError(err error) error {
	if filter, ok := errors.AsType[*ledger.FilterError](err); ok {
		return exitcode.With(exitcode.Config, filter)
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "42P01":
		return exitcode.Errorf(exitcode.Config, "%w; is source.ledger_schema right? outbox-cdc init makes the ledger", err)
	case "42703":
		return exitcode.Errorf(exitcode.Config, "%w; an older version has made this ledger: outbox-cdc init brings it up to date", err)
	case "42501":
		return exitcode.Errorf(exitcode.Privilege, "%w; let the owner grant it to the login of source.dsn", err)
	case "25006":
		return exitcode.Errorf(exitcode.Config, "%w; if the server is a standby, let source.dsn lead to the primary", err)
	case "55P03":
		return fmt.Errorf("another session holds rows of the ledger locked: %w; end its transaction (pg_stat_activity), then try again", err)
	}
	return err
}

// processorIDs returns the ids of the sinks with these names, in order. Without names it returns all, processor 0 included.
func (l *ledgerConn) processorIDs(names []string) ([]int32, error) {
	if len(names) == 0 {
		ids := []int32{0}
		for _, s := range l.Sinks {
			ids = append(ids, s.Processor)
		}
		return ids, nil
	}
	var ids []int32
	for _, name := range names {
		i := slices.IndexFunc(l.Sinks, func(s ledger.KnownSink) bool { return s.Name == name })
		switch {
		case i >= 0:
			ids = append(ids, l.Sinks[i].Processor)
		case name == noSink:
			ids = append(ids, 0)
		default:
			return nil, l.unknownSink(name)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// unknownSink is the error for a name that no sink of this connector has.
func (l *ledgerConn) unknownSink(name string) error {
	if len(l.Sinks) == 0 {
		return fmt.Errorf("no sink %q: connector %q has none yet; its first start, or init, makes them known", name, l.cfg.Name)
	}
	for _, c := range l.cfg.Composites {
		switch {
		case c.Name == name && !c.OneSink:
			return fmt.Errorf("no sink %q: it is a composite, and its members are the sinks: %s", name, strings.Join(c.Members, ", "))
		case c.OneSink && slices.Contains(c.Members, name):
			return fmt.Errorf("no sink %q: it is a member of the composite %s, which is the sink", name, c.Name)
		}
	}
	var known []string // also those that are no longer configured: they may have dead letters
	for _, s := range l.Sinks {
		known = append(known, s.Name)
	}
	return fmt.Errorf("no sink %q; those of connector %q are: %s", name, l.cfg.Name, strings.Join(known, ", "))
}

// sinkByID returns nil for processor 0 and for the sinks of other connectors.
func (l *ledgerConn) sinkByID(id int32) *ledger.KnownSink {
	for i := range l.Sinks {
		if l.Sinks[i].Processor == id {
			return &l.Sinks[i]
		}
	}
	return nil
}

func (l *ledgerConn) sinkName(id int32) string {
	if s := l.sinkByID(id); s != nil {
		return s.Name
	}
	return noSink
}

func (l *ledgerConn) isPaused(id int32) bool {
	s := l.sinkByID(id)
	return s != nil && !s.Active
}

// checkIDs refuses ids that cannot be event ids of this outbox. The database would refuse them too, with a message that helps
// less.
func (l *ledgerConn) checkIDs(ids []string) error {
	for _, id := range ids {
		if l.UUIDs && !isUUID(id) {
			return fmt.Errorf("%q is no event id: those of this outbox are of type uuid, as %s", id, exampleID)
		}
	}
	return nil
}

const exampleID = "0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f"

// isUUID accepts the forms that PostgreSQL accepts. uuid.Validate accepts the form urn:uuid:… as well, which is longer.
func isUUID(s string) bool { return uuid.Validate(s) == nil && len(s) <= len("{"+exampleID+"}") }

// canonicalID returns an event id in the form that the database writes.
func (l *ledgerConn) canonicalID(id string) string {
	if u, err := uuid.Parse(id); l.UUIDs && err == nil {
		return u.String()
	}
	return id
}

// timeBefore returns the time that long ago by the server's clock, which has written the times in the rows.
func (l *ledgerConn) timeBefore(ctx context.Context, ago time.Duration) (t time.Time, err error) {
	err = l.conn.QueryRow(ctx, "select clock_timestamp() - $1::interval", ago).Scan(&t)
	return t, err
}

// isConfigured reports whether the configuration has the sink, as far as that is known.
func (l *ledgerConn) isConfigured(id int32) bool {
	return len(l.cfg.Sinks) == 0 || slices.Contains(l.cfg.Sinks, l.sinkName(id))
}
