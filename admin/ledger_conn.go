package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// NoSink is how processor 0 is called: what stands there belongs to no sink, a row of the outbox that is no valid event, say.
const NoSink = "none"

// ledgerConn is a person's session with the ledger of a connector.
type ledgerConn struct {
	conn    *pgx.Conn
	cfg     Config
	sinks   []knownSink // of this connector, by id
	uuidIDs bool
}

// knownSink is a row of outbox_processors.
type knownSink struct {
	id     int32
	name   string
	active bool
}

// A person must neither wait for a lock for ever nor hold one.
var personal = "set lock_timeout = '2s'; set idle_in_transaction_session_timeout = '10s'; " + connector.PlanParked("set")

// withLedger calls f with a session for SQL. Its error may have ExitCode() int.
func withLedger(ctx context.Context, c Config, f func(*ledgerConn) error) error {
	var fault error // what f says: a server that goes away in the middle is no server that cannot be reached
	err := replication.WithConn(ctx, c.DSN, c.Source, func(conn *pgx.Conn) error {
		l := &ledgerConn{conn: conn, cfg: c}
		if err := l.open(ctx); err != nil {
			return err
		}
		fault = f(l)
		return nil
	})
	if err != nil {
		return ledgerError(unreachable(err))
	}
	return ledgerError(fault)
}

func (l *ledgerConn) open(ctx context.Context) error {
	if _, err := l.conn.Exec(ctx, personal); err != nil {
		return fmt.Errorf("set up the connection: %w", err)
	}
	if err := replication.CheckOwners(ctx, l.conn, l.cfg.Source); err != nil {
		return err
	}
	rows, err := l.conn.Query(ctx, l.sql("select id, processor_name, is_active from ledger.outbox_processors where connector = $1 order by id"), l.cfg.Name)
	if err == nil {
		l.sinks, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s knownSink, err error) {
			err = row.Scan(&s.id, &s.name, &s.active)
			return s, err
		})
	}
	if err == nil {
		err = l.conn.QueryRow(ctx, `select atttypid = 'uuid'::regtype from pg_attribute
			where attrelid = $1::text::regclass and attname = 'event_id'`, l.sql("ledger.outbox_parked")).Scan(&l.uuidIDs)
	}
	if err != nil {
		return fmt.Errorf("look at the ledger: %w", err)
	}
	return nil
}

// sql names the ledger's tables in a statement that writes them as ledger.outbox_….
func (l *ledgerConn) sql(text string) string { return l.cfg.Source.Ledger(text) }

// ledgerError gives what the database refuses its exit code and its remedy.
func ledgerError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "42P01":
		return exitcode.Errorf(exitcode.Config, "%w; is source.ledger_schema right? outbox-cdc init makes the ledger", err)
	case "42501":
		return exitcode.Errorf(exitcode.Privilege, "%w; let the owner grant it to the login of source.dsn", err)
	case "55P03":
		return fmt.Errorf("another session holds rows of the ledger locked: %w; end its transaction (pg_stat_activity), then try again", err)
	}
	return err
}

// named gives the ids of sinks by name: with no names of all, processor 0 included.
func (l *ledgerConn) named(names []string) ([]int32, error) {
	if len(names) == 0 {
		ids := []int32{0}
		for _, s := range l.sinks {
			ids = append(ids, s.id)
		}
		return ids, nil
	}
	var ids []int32
	for _, name := range names {
		i := slices.IndexFunc(l.sinks, func(s knownSink) bool { return s.name == name })
		switch {
		case i >= 0:
			ids = append(ids, l.sinks[i].id)
		case name == NoSink:
			ids = append(ids, 0)
		default:
			return nil, l.unknown(name)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

func (l *ledgerConn) unknown(name string) error {
	if len(l.sinks) == 0 {
		return fmt.Errorf("no sink %q: connector %q has none yet; its first start, or init, makes them known", name, l.cfg.Name)
	}
	var known []string
	for _, s := range l.sinks {
		known = append(known, s.name)
	}
	return fmt.Errorf("no sink %q; those of connector %q are: %s", name, l.cfg.Name, strings.Join(known, ", "))
}

// sink is the row of an id; nil for processor 0 and those of other connectors.
func (l *ledgerConn) sink(id int32) *knownSink {
	for i := range l.sinks {
		if l.sinks[i].id == id {
			return &l.sinks[i]
		}
	}
	return nil
}

func (l *ledgerConn) name(id int32) string {
	if s := l.sink(id); s != nil {
		return s.name
	}
	return NoSink
}

// checkIDs says what is wrong with ids of events, before the database does in its own words.
func (l *ledgerConn) checkIDs(ids []string) error {
	for _, id := range ids {
		if l.uuidIDs && !isUUID(id) {
			return fmt.Errorf("%q is no event id: those of this outbox are of type uuid, as %s", id, exampleID)
		}
	}
	return nil
}

const exampleID = "0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f"

// isUUID: as PostgreSQL reads it, which knows no URNs.
func isUUID(s string) bool { return uuid.Validate(s) == nil && len(s) <= len("{"+exampleID+"}") }

// idType is the type of event ids.
func (l *ledgerConn) idType() string {
	if l.uuidIDs {
		return "uuid"
	}
	return "text"
}

// canonical is an id as the database writes it.
func (l *ledgerConn) canonical(id string) string {
	if u, err := uuid.Parse(id); l.uuidIDs && err == nil {
		return u.String()
	}
	return id
}

// tell wakes the lanes of a sink, when tx commits.
func (l *ledgerConn) tell(ctx context.Context, tx pgx.Tx, processor int32) error {
	_, err := tx.Exec(ctx, "select pg_notify($1, $2)", connector.Changed, fmt.Sprintf("%s:%d", l.cfg.Source.LedgerSchema, processor))
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}
