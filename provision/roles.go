package provision

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Roles are the names of the connector's two logins. They may be the same.
type Roles struct {
	SQL         string
	Replication string
	// SQLConnections is the number of connections for SQL that an instance opens at most (source.max_connections).
	SQLConnections int
}

// replicationLimit is the connection limit of the role of the stream, so that it can never take all connections of the server.
// The stream needs one connection, an instance that stands by and tries to start needs one, and init or destroy needs one.
const replicationLimit = 3

// sqlLimit is the connection limit of the role for SQL. It is enough for an instance that runs, one that stands by, and four
// commands of persons at a time.
func (r Roles) sqlLimit() int { return 2*r.SQLConnections + 4 }

// SQLText returns the SQL that an administrator runs after the migrations and before "outbox-cdc init", if init is to run with
// the connector's own rights. It creates the publication and two logins, and grants them the least that they need. It can be run
// again.
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

// createRole writes the statement that creates a role. The statement leaves a role that exists as it is, because others may use
// it too.
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
