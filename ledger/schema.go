// Package ledger owns the ledger's tables: outbox_checkpoints, outbox_delivery_log, outbox_parked, outbox_processors,
// outbox_backlog and outbox_metrics, and the view event_outbox_status. No other package has SQL on them, except the files of
// package migrations, which make them, and the grants of package provision. The package decides nothing: what is delivered, parked
// or retried is the business of its callers.
//
// Its statements run over connections whose search_path finds no table and no function of anybody (Pin), and name the ledger's
// schema (Schema.statement). The reason is that others may create things in the ledger's schema: up to PostgreSQL 14, and in a
// database upgraded from it, everybody may do so in "public". PostgreSQL takes the function or operator that fits the types of
// the arguments best, of all schemas of the search_path. With the ledger's schema on the path, somebody else's
// "bigint % integer" or "format(text, name)" would run with the connector's rights.
package ledger

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Schema is the name of the schema that the ledger is in, as it is, without quotes. Its methods are safe for all goroutines.
type Schema string

// Querier is a database that can be asked: a connection, a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Execer is a database in which something can be changed: a connection, a pool or a transaction.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// statement puts the quoted name of the schema in the place of "ledger" in ledger.outbox_… and ledger.event_outbox…:
//
//	Schema("cdc").statement("select count(*) from ledger.outbox_parked")
//
// It returns the same text each time, so that a connection prepares a statement once. If a statement is sent often, make its
// text once and keep it.
func (s Schema) statement(text string) string {
	name := pgx.Identifier{string(s)}.Sanitize()
	return strings.NewReplacer("ledger.outbox_", name+".outbox_", "ledger.event_outbox", name+".event_outbox").Replace(text)
}

// quote returns the quoted name of a table or function with its schema: what text::regclass takes.
func (s Schema) quote(name string) string { return pgx.Identifier{string(s), name}.Sanitize() }

// EventIDType returns the type of event ids in the ledger, "uuid" or "text". It looks in the catalogs by name, because
// text::regclass would need the right to use the schema, which the login may lack.
func (s Schema) EventIDType(ctx context.Context, db Querier) (name string, err error) {
	err = db.QueryRow(ctx, `select format_type(atttypid, null) from pg_attribute where attname = 'event_id' and attrelid =
		(select c.oid from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = $1 and relname = 'outbox_delivery_log')`,
		string(s)).Scan(&name)
	return name, err
}

// MakePartitions makes the log's partitions of today and the next days. The statement gives both arguments, of the exact types: a
// function of the same name and without arguments, which somebody else may have made, would fit a call without any better.
func (s Schema) MakePartitions(ctx context.Context, db Execer) error {
	_, err := db.Exec(ctx, s.statement("select ledger.outbox_make_partitions(now(), 7)"))
	return err
}
