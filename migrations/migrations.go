// Package migrations makes the outbox and its ledger. The numbered files are plain SQL that "psql -f" applies as well;
// this package applies them under a lock and remembers which ones it has applied. Forward only.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

// versionTable and lockID are our own, so that a service whose own migrations run on goose is not disturbed.
const (
	versionTable = "outbox_migrations"
	lockID       = 0x6f7574626f78 // "outbox"
)

// Options say what is made, and where.
type Options struct {
	// Schema takes the ledger, and event_outbox where that is made; it is created if it does not exist. Empty leaves
	// the choice to the login's search_path.
	Schema string
	// Mapped means that the events are in a table of the user's own: event_outbox and its view are not made.
	Mapped bool
	// EventIDType is "uuid" (also if empty) or "text", as the ids of a mapped table need it.
	EventIDType string
}

// settings are the parameters of the session that the files read.
func (o Options) settings() ([][2]string, error) {
	var s [][2]string
	if o.Schema != "" {
		s = append(s, [2]string{"search_path", pgx.Identifier{o.Schema}.Sanitize()})
	}
	if o.Mapped {
		s = append(s, [2]string{"outbox.mapped", "on"})
	}
	switch o.EventIDType {
	case "", "uuid":
	case "text":
		s = append(s, [2]string{"outbox.event_id_type", "text"})
	default:
		return nil, fmt.Errorf("event id type %q: must be uuid or text", o.EventIDType)
	}
	return s, nil
}

// Apply brings the schema up to date. It may be called again, after "psql -f", and by several processes at once.
// Where tables of the same names but with other columns are in the way it changes nothing and names them.
func Apply(ctx context.Context, dsn string, o Options) error {
	db, err := open(dsn, o)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := createSchema(ctx, db, o.Schema); err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(lockID), lock.WithLockTimeout(1, 300))
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versionTable), goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return explain(err)
	}
	return nil
}

// Pending names the files that Apply would apply, without changing anything.
func Pending(ctx context.Context, dsn string, o Options) ([]string, error) {
	db, err := open(dsn, o)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, err
	}
	var exists bool
	// current_schema() is null where the schema is yet to be made.
	err = db.QueryRowContext(ctx, `select exists (select from pg_class c join pg_namespace n on n.oid = relnamespace
		where nspname = current_schema() and relname = $1)`, versionTable).Scan(&exists)
	if err != nil {
		return nil, err
	}
	if !exists {
		return names, nil
	}
	var version int64
	if err := db.QueryRowContext(ctx, "select coalesce(max(version_id), 0) from "+versionTable).Scan(&version); err != nil {
		return nil, err
	}
	pending := []string{}
	for _, name := range names {
		n, err := goose.NumericComponent(name)
		if err != nil {
			return nil, err
		}
		if n > version {
			pending = append(pending, name)
		}
	}
	return pending, nil
}

// SQL is what Apply does, for a person to read or to run with psql: the same tables, and the same memory of it, so that a
// login without the right to create anything can Apply afterwards.
func SQL(o Options) (string, error) {
	settings, err := o.settings()
	if err != nil {
		return "", err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("begin;\n")
	if o.Schema != "" {
		fmt.Fprintf(&b, "create schema if not exists %s;\n", pgx.Identifier{o.Schema}.Sanitize())
	}
	for _, s := range settings { // search_path is a list of quoted names, the others are words
		fmt.Fprintf(&b, "set local %s = %s;\n", s[0], s[1])
	}
	fmt.Fprintf(&b, versionTableSQL, versionTable)
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return "", err
		}
		version, err := goose.NumericComponent(name)
		if err != nil {
			return "", err
		}
		b.WriteByte('\n')
		b.Write(text)
		fmt.Fprintf(&b, "insert into %s (version_id, is_applied) select %d, true where not exists (select from %[1]s where version_id = %[2]d);\n",
			versionTable, version)
	}
	b.WriteString("commit;\n")
	return b.String(), nil
}

// versionTableSQL is goose's own, which begins with version 0.
const versionTableSQL = `
create table if not exists %[1]s (
  id         int       primary key generated by default as identity,
  version_id bigint    not null,
  is_applied boolean   not null,
  tstamp     timestamp not null default now()
);
insert into %[1]s (version_id, is_applied) select 0, true where not exists (select from %[1]s);
`

func open(dsn string, o Options) (*sql.DB, error) {
	settings, err := o.settings()
	if err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		// Only the cause: the rest of the text repeats the DSN.
		if cause := errors.Unwrap(err); cause != nil {
			return nil, fmt.Errorf("the dsn is no valid connection string: %w", cause)
		}
		return nil, errors.New("the dsn is no valid connection string")
	}
	for _, s := range settings {
		config.RuntimeParams[s[0]] = s[1]
	}
	return stdlib.OpenDB(*config), nil
}

// createSchema asks first: "if not exists" needs the right to create schemas even where there is nothing to create. Two
// at once would still both create it, hence the lock.
func createSchema(ctx context.Context, db *sql.DB, schema string) error {
	if schema == "" {
		return nil
	}
	var exists bool
	if err := db.QueryRowContext(ctx, "select exists (select from pg_namespace where nspname = $1)", schema).Scan(&exists); err != nil {
		return err
	}
	if exists {
		return nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	if _, err := tx.ExecContext(ctx, "select pg_advisory_xact_lock($1)", int64(lockID)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "create schema if not exists "+pgx.Identifier{schema}.Sanitize()); err != nil {
		return fmt.Errorf("create schema %q: %w", schema, err)
	}
	return tx.Commit()
}

// explain gives PostgreSQL's own words, hint included: the files state the remedy there.
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
