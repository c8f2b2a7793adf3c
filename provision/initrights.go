package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// checkInitRights adds one problem that lists the statements by which somebody else can let the login of cfg.DSN do what init has to
// do, or resync: make schema and tables, create the publication, write the checkpoint. checkReplicationUser looks after the slot. Of found it
// needs whether the publication exists, and which command looks. checkInitRights reads catalogs only, because a login without rights cannot read anything else.
func checkInitRights(ctx context.Context, db ledger.Querier, cfg SetupConfig, found existing, p *problems) error {
	r := initRights{db: db, cfg: cfg, hasPublication: found.publication}
	err := db.QueryRow(ctx, `select current_user::text, current_database()::text, has_database_privilege(current_database(), 'create')`).
		Scan(&r.user, &r.database, &r.createsInDatabase)
	if err != nil {
		return err
	}
	if err := r.checkTables(ctx); err != nil {
		return err
	}
	if err := r.checkOutbox(ctx); err != nil {
		return err
	}
	if !cfg.MakesTables {
		lacking, err := lackingPrivileges(ctx, db, cfg.Source)
		if err != nil {
			return err
		}
		for _, statement := range lacking {
			r.lacks("%s", statement)
		}
		if err := r.checkMigrationsTable(ctx); err != nil {
			return err
		}
	}
	switch {
	case r.superuser != "":
		p.add(exitcode.Privilege, "role %q lacks privileges for %s: %s; give that login, or another superuser's, by --dsn or OUTBOX_ADMIN_URL", r.user, found.command, r.superuser)
		return nil
	case r.statements == nil:
		return nil
	}
	// The statements stand at the end, so that they can be copied.
	p.add(exitcode.Privilege, `role %q lacks privileges for %s; give an owner's login by --dsn or OUTBOX_ADMIN_URL, or let an administrator run what "outbox-cdc init --print-sql" prints, `+
		"or these: %s", r.user, found.command, strings.Join(r.statements, "; "))
	return nil
}

// initRights gathers what the login lacks.
type initRights struct {
	db                ledger.Querier
	cfg               SetupConfig
	user, database    string
	createsInDatabase bool
	hasPublication    bool
	statements        []string
	// superuser says what belongs to a superuser and has to be changed. It is empty if there is no such thing.
	superuser string
}

// lacks adds a statement, once: PostgreSQL's format quotes only the names that need it, and Sanitize all of them.
func (r *initRights) lacks(format string, args ...any) {
	statement := fmt.Sprintf(format, args...)
	same := func(s string) bool { return strings.ReplaceAll(s, `"`, "") == strings.ReplaceAll(statement, `"`, "") }
	if !slices.ContainsFunc(r.statements, same) {
		r.statements = append(r.statements, statement)
	}
}

func (r *initRights) role() string { return pgx.Identifier{r.user}.Sanitize() }

func (r *initRights) lacksCreateInDatabase() {
	if !r.createsInDatabase {
		r.lacks("grant create on database %s to %s", pgx.Identifier{r.database}.Sanitize(), r.role())
	}
}

// checkTables looks whether the login may run the migrations: make the ledger's schema, or tables in it, and change the tables that
// are there already.
func (r *initRights) checkTables(ctx context.Context) error {
	if !r.cfg.MakesTables {
		return nil
	}
	var maySchema bool
	err := r.db.QueryRow(ctx, `select has_schema_privilege(oid, 'usage') and has_schema_privilege(oid, 'create') from pg_namespace where nspname = $1`,
		r.cfg.LedgerSchema).Scan(&maySchema)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		r.lacksCreateInDatabase()
		return nil
	case err != nil:
		return err
	case !maySchema:
		r.lacks("grant usage, create on schema %s to %s", pgx.Identifier{r.cfg.LedgerSchema}.Sanitize(), r.role())
	}
	names := append(ledgerTables(), "outbox_migrations")
	if !r.cfg.Mapped() {
		names = append(names, "event_outbox", statusView)
	}
	rows, err := r.db.Query(ctx, `select rolname::text, rolsuper, string_agg(format('%I.%I', nspname, relname), ', ' order by relname)
		from pg_class c join pg_namespace n on n.oid = relnamespace join pg_roles o on o.oid = relowner
		where nspname = $1 and relname = any ($2) and not pg_has_role(relowner, 'usage') group by rolname, rolsuper order by rolname`, r.cfg.LedgerSchema, names)
	if err != nil {
		return err
	}
	var owner, tables string
	var super bool
	_, err = pgx.ForEachRow(rows, []any{&owner, &super, &tables}, func() error {
		if super { // no statement gives the login this right, and no other of a superuser
			r.superuser = fmt.Sprintf("%s belong to the superuser %q, and a new version has to change them", tables, owner)
			return nil
		}
		r.lacks("grant %s to %s", pgx.Identifier{owner}.Sanitize(), r.role())
		return nil
	})
	return err
}

// checkMigrationsTable looks whether the login may read which migrations were applied.
func (r *initRights) checkMigrationsTable(ctx context.Context) error {
	var reads bool
	err := r.db.QueryRow(ctx, `select has_table_privilege(c.oid, 'select') from pg_class c join pg_namespace n on n.oid = relnamespace
		where nspname = $1 and relname = 'outbox_migrations'`, r.cfg.LedgerSchema).Scan(&reads)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil && !reads {
		r.lacks("grant select on table %s to %s", pgx.Identifier{r.cfg.LedgerSchema, "outbox_migrations"}.Sanitize(), r.role())
	}
	return err
}

// checkOutbox looks whether the login may read an outbox that exists, and create a publication of it. Only the table's owner may, so
// the statement for an outbox of somebody else is the publication itself.
func (r *initRights) checkOutbox(ctx context.Context) error {
	schema, name := r.cfg.tableName()
	var owns, uses, reads bool
	err := r.db.QueryRow(ctx, `select pg_has_role(relowner, 'usage'), has_schema_privilege(n.oid, 'usage'), has_table_privilege(c.oid, 'select')
			from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = $1 and relname = $2`, schema, name).Scan(&owns, &uses, &reads)
	if errors.Is(err, pgx.ErrNoRows) { // the migrations make it, and the login will own it
		if !r.hasPublication {
			r.lacksCreateInDatabase()
		}
		return nil
	}
	if err != nil {
		return err
	}
	if !uses {
		r.lacks("grant usage on schema %s to %s", pgx.Identifier{schema}.Sanitize(), r.role())
	}
	if !reads {
		r.lacks("grant select on table %s to %s", r.cfg.table(), r.role())
	}
	switch {
	case r.hasPublication:
	case owns:
		r.lacksCreateInDatabase()
	default:
		r.lacks("%s", publicationSQL(r.cfg.Source))
	}
	return nil
}
