package provision

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// grant is what the SQL login needs of one table of the ledger.
type grant struct {
	table      string
	privileges []string
}

// grants: the log is append-only, for us as well.
var grants = []grant{
	{"outbox_delivery_log", []string{"select", "insert"}},
	{"outbox_processors", []string{"select", "insert", "update", "delete"}},
	{"outbox_parked", []string{"select", "insert", "update", "delete"}},
	{"outbox_checkpoints", []string{"select", "insert", "update", "delete"}},
	{"outbox_backlog", []string{"select", "insert", "update", "delete"}},
	{"outbox_metrics", []string{"select", "insert", "update", "delete"}},
}

const partitionFunction = "outbox_make_partitions(timestamptz, int)"

func ledgerTables() []string {
	var names []string
	for _, g := range grants {
		names = append(names, g.table)
	}
	return names
}

// checkPrivileges adds one problem with all the grants that the session's login lacks. It reads catalogs only: naming
// a table in a schema that one may not use is an error by itself.
func checkPrivileges(ctx context.Context, db SQL, s Source, p *problems) error {
	schema, name := s.tableName()
	var schemas, names, wanted []string
	want := func(schema, name, privilege string) {
		schemas, names, wanted = append(schemas, schema), append(names, name), append(wanted, privilege)
	}
	want(schema, name, "select")
	for _, g := range grants {
		for _, privilege := range g.privileges {
			want(s.LedgerSchema, g.table, privilege)
		}
	}
	var user string
	if err := db.QueryRow(ctx, "select current_user::text").Scan(&user); err != nil {
		return err
	}
	login := pgx.Identifier{user}.Sanitize()
	rows, err := db.Query(ctx, `select distinct format('grant usage on schema %I to ', nspname)
			from pg_namespace where nspname in ($1, $2) and not has_schema_privilege(oid, 'usage')
		union all
		select format('grant %s on table %I.%I to ', string_agg(privilege, ', ' order by privilege), schema, name)
			from unnest($3::text[], $4::text[], $5::text[]) as w (schema, name, privilege)
			join pg_namespace n on nspname = schema join pg_class c on relnamespace = n.oid and relname = name
			where not has_table_privilege(c.oid, privilege) group by schema, name
		union all
		select format('grant execute on function %I.%s to ', nspname, $6::text)
			from pg_proc p join pg_namespace n on n.oid = pronamespace
			where nspname = $2 and proname = 'outbox_make_partitions' and not has_function_privilege(p.oid, 'execute')`,
		schema, s.LedgerSchema, schemas, names, wanted, partitionFunction)
	if err != nil {
		return err
	}
	lacking, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(lacking) == 0 {
		return err
	}
	for i := range lacking {
		lacking[i] += login
	}
	p.add(exitcode.Privilege, "role %q lacks privileges; as the owner of the tables: %s", user, strings.Join(lacking, "; "))
	return nil
}

// Roles are the two logins of the connector. They may be the same.
type Roles struct {
	SQL         string
	Replication string
	// SQLConnections is how many sessions for SQL an instance opens at most (source.max_connections).
	SQLConnections int
}

// A role that the printed SQL creates cannot take all connections of the server. The stream needs one; one more is for an
// instance that stands by and tries to start, and one for init or destroy.
const replicationLimit = 3

// sqlLimit is for an instance that runs, one that stands by, and four commands of persons at a time.
func (r Roles) sqlLimit() int { return 2*r.SQLConnections + 4 }

// SQLText is what an administrator runs after the migrations and before "outbox-cdc init", where init is to run with no
// more rights than the connector itself: the publication, and two logins with the least that they need. It can be
// run again.
func SQLText(s Source, r Roles) string {
	var b strings.Builder
	app, stream := pgx.Identifier{r.SQL}.Sanitize(), pgx.Identifier{r.Replication}.Sanitize()
	fmt.Fprintf(&b, `
-- Nothing that other roles have made in a schema of the search_path is called.
begin;
set local search_path = pg_catalog, pg_temp;

-- The publication: inserts into the outbox, and nothing else.
do $$
begin
  if not exists (select from pg_publication where pubname = %s) then
    %s;
  end if;
end
$$;

-- The login of the stream. It needs no right to any table, because REPLICATION alone reads everything in the cluster, base
-- backups included: let pg_hba.conf admit it from the connector's address only, and give it a password of its own.
-- (Amazon RDS: grant rds_replication instead of the attribute.)
`, quoteLiteral(s.Publication), publicationSQL(s))
	limit := replicationLimit
	if r.SQL == r.Replication {
		limit += r.sqlLimit()
	}
	createRole(&b, r.Replication, limit)
	fmt.Fprintf(&b, "alter role %s replication;\n", stream)
	if r.SQL != r.Replication {
		b.WriteString("\n-- The login for SQL. It reads the outbox, never writes it, and keeps the ledger.\n")
		createRole(&b, r.SQL, r.sqlLimit())
	}
	fmt.Fprintf(&b, "do $$ begin execute format('grant connect on database %%I to %s', current_database()); end $$;\n",
		strings.ReplaceAll(strings.Join(slices.Compact([]string{app, stream}), ", "), "'", "''"))
	for _, statement := range grantStatements(s, r.SQL) {
		b.WriteString(statement + ";\n")
	}
	b.WriteString("commit;\n")
	return b.String()
}

// Grant gives a login for SQL what it needs. dsn is of the tables' owner.
func Grant(ctx context.Context, dsn string, s Source, role string) error {
	return WithConn(ctx, dsn, s, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, statement := range grantStatements(s, role) {
				if _, err := tx.Exec(ctx, statement); err != nil {
					return ownerError(statement, err)
				}
			}
			return nil
		})
	})
}

func grantStatements(s Source, role string) []string {
	app, ledger := pgx.Identifier{role}.Sanitize(), pgx.Identifier{s.LedgerSchema}.Sanitize()
	schema, _ := s.tableName()
	var statements []string
	add := func(format string, args ...any) {
		statements = append(statements, fmt.Sprintf(format, args...)+" to "+app)
	}
	for _, name := range slices.Compact([]string{pgx.Identifier{schema}.Sanitize(), ledger}) {
		add("grant usage on schema %s", name)
	}
	add("grant select on table %s", s.table())
	for _, g := range grants {
		add("grant %s on table %s.%s", strings.Join(g.privileges, ", "), ledger, g.table)
	}
	add("grant select on table %s.outbox_migrations", ledger)
	if !s.Mapped() {
		add("grant select on table %s.event_outbox_status", ledger)
	}
	add("grant execute on function %s.%s", ledger, partitionFunction)
	return statements
}

// createRole leaves a role that exists as it is: others may use it too.
func createRole(b *strings.Builder, name string, limit int) {
	fmt.Fprintf(b, `do $$
begin
  if not exists (select from pg_roles where rolname = %s) then
    create role %s login connection limit %d;
  end if;
end
$$;
`, quoteLiteral(name), pgx.Identifier{name}.Sanitize(), limit)
}
