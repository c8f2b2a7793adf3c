// Package migrations makes the outbox and its ledger. The numbered files are plain SQL that "psql -f" applies as well, and
// each of them records that it was applied. This package applies those that are missing, under a lock. No migration is undone.
//
// Its connections have no search_path but pg_catalog: see the head of the first file for the reason.
package migrations

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

//go:embed *.sql
var migrationFiles embed.FS

// firstFile makes the tables. The later ones bring older tables up to date, and add to them.
const firstFile = "004_create_outbox_tables.sql"

// lockID is the key of the advisory lock under which the schema is changed: "outbox".
const lockID = 0x6f7574626f78

// Options say what is made, and where.
type Options struct {
	// Schema is where the ledger is made, and event_outbox, unless the outbox is mapped. It is created if it does not exist. If
	// it is empty, it is the first schema of the login's search_path.
	Schema string
	// Mapped means that the events are in a table of the user's own: event_outbox and its view are not made.
	Mapped bool
	// EventIDType is "uuid" (also if empty) or "text", as the ids of a mapped table need it.
	EventIDType string
	// Partitioned means that event_outbox is partitioned by day. Apply refuses it where a plain event_outbox exists.
	Partitioned bool
	// Version is that of the program. Apply writes it into the ledger if it is a release, so that an older one can name it when it refuses
	// the ledger.
	Version string
	// Timeout bounds how long Apply and Drop wait for another process that changes the schema, and for the lock of a table; 0
	// means a minute.
	Timeout time.Duration
	// WaitingForLock is called with a description of the connection for whose end Apply or Drop waits; it may be nil.
	WaitingForLock func(holder string)
}

func (o Options) check() error {
	switch o.EventIDType {
	case "", "uuid", "text":
		return nil
	}
	return fmt.Errorf("event id type %q: must be uuid or text", o.EventIDType)
}

// Apply brings the schema up to date. It may be called again, after "psql -f", and by several processes at once. If tables of
// the same names have other columns, or belong to roles that are not trusted, it changes nothing, and the error names them. Nor does it
// change a ledger that a later version has changed: see CheckNewer.
func Apply(ctx context.Context, dsn string, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	return withConn(ctx, dsn, o, func(conn *pgx.Conn, schema string) error {
		if err := lock(ctx, conn, o); err != nil {
			return err
		}
		names, err := pendingFiles(ctx, conn, schema)
		if err != nil {
			return err
		}
		if err := CheckPartitioned(ctx, conn, Options{Schema: schema, Mapped: o.Mapped, Partitioned: o.Partitioned}); err != nil {
			return err
		}
		if !slices.Contains(names, firstFile) { // which looks itself
			if err := checkIDType(ctx, conn, o, schema); err != nil {
				return err
			}
		}
		if len(names) == 0 {
			return nil
		}
		o.Schema = schema
		// "if not exists" needs the right to create schemas even if there is nothing to create.
		var exists bool
		if err := conn.QueryRow(ctx, "select exists (select from pg_namespace where nspname = $1)", schema).Scan(&exists); err != nil {
			return err
		}
		first := ""
		if !exists {
			first = createSchema(schema)
		}
		text, err := script(o, names, first)
		if err != nil {
			return err
		}
		_, err = conn.PgConn().Exec(ctx, text).ReadAll()
		return explain(err)
	})
}

func lock(ctx context.Context, conn *pgx.Conn, o Options) error {
	err := advisory.Lock(ctx, conn, lockID, "the schema of outbox-cdc", advisory.Wait{Timeout: o.Timeout, Tell: o.WaitingForLock})
	if err != nil {
		return err
	}
	return advisory.LimitTableLocks(ctx, conn, o.Timeout)
}

// Pending returns the names of the files that Apply would apply. It changes nothing, and refuses what CheckNewer refuses.
func Pending(ctx context.Context, dsn string, o Options) (names []string, err error) {
	err = withConn(ctx, dsn, o, func(conn *pgx.Conn, schema string) error {
		names, err = pendingFiles(ctx, conn, schema)
		return err
	})
	return names, err
}

func pendingFiles(ctx context.Context, conn *pgx.Conn, schema string) ([]string, error) {
	found, err := findTable(ctx, conn, schema)
	if err != nil {
		return nil, err
	}
	if !found.ours { // the files refuse a table of somebody else
		return Missing(nil)
	}
	applied, err := readApplied(ctx, conn, schema)
	if err != nil {
		return nil, err
	}
	if err := found.checkNewer(schema, applied); err != nil {
		return nil, err
	}
	// Not the highest number: somebody may have applied a later file alone.
	numbers := make([]int64, len(applied))
	for i, f := range applied {
		numbers[i] = f.number
	}
	return Missing(numbers)
}

// Missing returns the names of the files whose numbers are not among those that were applied.
func Missing(applied []int64) ([]string, error) {
	names, err := fs.Glob(migrationFiles, "*.sql")
	if err != nil {
		return nil, err
	}
	missing := []string{}
	for _, name := range names {
		n, err := numberOf(name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(applied, n) {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

// checkIDType refuses a ledger that was made for ids of another type.
func checkIDType(ctx context.Context, conn *pgx.Conn, o Options, schema string) error {
	var has string
	wanted := cmp.Or(o.EventIDType, "uuid")
	err := conn.QueryRow(ctx, `select coalesce(max(format_type(atttypid, null)), $2) from pg_attribute
		where attrelid = to_regclass($1) and attname = 'event_id'`, pgx.Identifier{schema, "outbox_delivery_log"}.Sanitize(), wanted).Scan(&has)
	if err == nil && has != wanted {
		err = &refusal{fmt.Sprintf("outbox_delivery_log.event_id is of type %s, the outbox's id needs %s; "+
			"put the ledger into another schema by source.ledger_schema", has, wanted)}
	}
	return err
}

// CheckPartitioned refuses a plain event_outbox where a partitioned one is asked for.
func CheckPartitioned(ctx context.Context, conn *pgx.Conn, o Options) error {
	if !o.Partitioned || o.Mapped {
		return nil
	}
	var plain bool
	err := conn.QueryRow(ctx, `select exists (select from pg_class c join pg_namespace n on n.oid = relnamespace
		where nspname = $1 and relname = 'event_outbox' and relkind = 'r')`, o.Schema).Scan(&plain)
	if err == nil && plain {
		err = &refusal{fmt.Sprintf("%s exists and is not partitioned; docs/partitions.md#existing says how to make it partitioned, with its rows; "+
			"without --partitioned it stays as it is", pgx.Identifier{o.Schema, "event_outbox"}.Sanitize())}
	}
	return err
}

// SQL returns what Apply runs, for a person to read or to run with psql. After that, a login without the right to create
// anything can call Apply.
func SQL(o Options) (string, error) {
	if err := o.check(); err != nil {
		return "", err
	}
	names, err := fs.Glob(migrationFiles, "*.sql")
	if err != nil {
		return "", err
	}
	first := ""
	if o.Schema != "" {
		first = createSchema(o.Schema)
	}
	return script(o, names, first)
}

func createSchema(name string) string {
	return fmt.Sprintf("create schema if not exists %s;\n", pgx.Identifier{name}.Sanitize())
}

// script runs the statements first, and then these files, in one transaction. The connection's settings are as before after it.
func script(o Options, names []string, first string) (string, error) {
	var b strings.Builder
	b.WriteString("begin;\n" + first)
	if o.Schema != "" {
		fmt.Fprintf(&b, "set local outbox.schema = '%s';\n", strings.ReplaceAll(o.Schema, "'", "''"))
	}
	if o.Mapped {
		b.WriteString("set local outbox.mapped = on;\n")
	}
	if o.EventIDType == "text" {
		b.WriteString("set local outbox.event_id_type = text;\n")
	}
	if o.Partitioned {
		b.WriteString("set local outbox.partitioned = on;\n")
	}
	for _, name := range names {
		text, err := migrationFiles.ReadFile(name)
		if err != nil {
			return "", err
		}
		b.WriteByte('\n')
		b.Write(text)
	}
	signed, err := sign(o.Schema, o.Version)
	if err != nil {
		return "", err
	}
	b.WriteString(signed + "commit;\n")
	return b.String(), nil
}

// withConn calls f with a connection whose search_path is pg_catalog, and with the schema of the ledger. If the options name no schema, it
// is the first of the login's search_path, and empty if that has none.
func withConn(ctx context.Context, dsn string, o Options, f func(conn *pgx.Conn, schema string) error) error {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		// Only the cause: the rest of the text repeats the DSN.
		if cause := errors.Unwrap(err); cause != nil {
			return fmt.Errorf("the dsn is no valid connection string: %w", cause)
		}
		return errors.New("the dsn is no valid connection string")
	}
	if o.Schema != "" {
		ledger.Pin(&config.Config)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // nothing depends on how the connection ends
	}()
	schema := o.Schema
	if schema == "" {
		if err := conn.QueryRow(ctx, "select coalesce(pg_catalog.current_schema()::pg_catalog.text, '')").Scan(&schema); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, "set search_path = pg_catalog, pg_temp"); err != nil {
		return err
	}
	return advisory.ExplainTableLock(ctx, conn, f(conn, schema))
}

// explain returns an error with PostgreSQL's message and its hint, in which the files give the remedy.
func explain(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	if pgErr.Hint == "" {
		return fmt.Errorf("apply the migrations: %w", pgErr)
	}
	return fmt.Errorf("apply the migrations: %w; %s", pgErr, pgErr.Hint)
}
