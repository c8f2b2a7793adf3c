package provision

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// tableRights are the privileges that the login for SQL needs on one table of the ledger.
type tableRights struct {
	table      string
	privileges []string
}

// ledgerRights are what the login for SQL needs on the ledger. Not even we may change or delete rows of the log.
var ledgerRights = []tableRights{
	{"outbox_delivery_log", []string{"select", "insert"}},
	{"outbox_processors", []string{"select", "insert", "update", "delete"}},
	{"outbox_parked", []string{"select", "insert", "update", "delete"}},
	{"outbox_checkpoints", []string{"select", "insert", "update", "delete"}},
	{"outbox_backlog", []string{"select", "insert", "update", "delete"}},
	{"outbox_metrics", []string{"select", "insert", "update", "delete"}},
}

const (
	partitionFunction = "outbox_make_partitions(timestamptz, int)"
	dropFunction      = "outbox_drop_log_partitions(timestamptz, boolean)"
	retentionTable    = "outbox_retention"
	// dayFunction is needed only if event_outbox is partitioned. It drops a day with its rows.
	dayFunction = "outbox_drop_event_day(oid, bigint, bigint)"
)

// These make the partitions of an event_outbox that is partitioned, and drop the empty ones.
const (
	outboxPartitionFunction = "outbox_make_event_partitions(timestamptz, int)"
	outboxDropFunction      = "outbox_drop_event_partition()"
)

// ledgerTables returns the names of the ledger's tables.
func ledgerTables() []string {
	var names []string
	for _, g := range ledgerRights {
		names = append(names, g.table)
	}
	return append(names, retentionTable)
}

// checkPrivileges adds one problem that lists all grants that the login lacks.
func checkPrivileges(ctx context.Context, db ledger.Querier, s Source, p *problems) error {
	lacking, err := lackingPrivileges(ctx, db, s)
	if err != nil || len(lacking) == 0 {
		return err
	}
	var user string
	if err := db.QueryRow(ctx, "select current_user::text").Scan(&user); err != nil {
		return err
	}
	p.add(exitcode.Privilege, "role %q lacks privileges; as the owner of the tables: %s", user, strings.Join(lacking, "; "))
	return nil
}

// lackingPrivileges returns the grants that the login lacks for a run. It reads catalogs only, because a statement that names a table
// in a schema that the login may not use would fail.
func lackingPrivileges(ctx context.Context, db ledger.Querier, s Source) ([]string, error) {
	schema, name := s.tableName()
	var schemas, names, wanted []string
	want := func(schema, name, privilege string) {
		schemas, names, wanted = append(schemas, schema), append(names, name), append(wanted, privilege)
	}
	want(schema, name, "select")
	for _, g := range ledgerRights {
		for _, privilege := range g.privileges {
			want(s.LedgerSchema, g.table, privilege)
		}
	}
	var user string
	if err := db.QueryRow(ctx, "select current_user::text").Scan(&user); err != nil {
		return nil, err
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
		select format('grant execute on function %I.%s to ', nspname, signature)
			from (values ('outbox_make_partitions', $6::text, false), ('outbox_make_event_partitions', $7, true), ('outbox_drop_event_partition', $9, true)) as f (name, signature, by_day)
			join pg_proc p on proname = name join pg_namespace n on n.oid = pronamespace
			where nspname = $2 and not has_function_privilege(p.oid, 'execute')
				and (not by_day or exists (select from pg_class where relnamespace = n.oid and relname = 'event_outbox' and relkind = 'p' and not $8))`,
		schema, s.LedgerSchema, schemas, names, wanted, partitionFunction, outboxPartitionFunction, s.Mapped(), outboxDropFunction)
	if err != nil {
		return nil, err
	}
	lacking, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for i := range lacking {
		lacking[i] += login
	}
	return lacking, err
}

// checkReplicationUser adds a problem if the user may not replicate. It checks nothing if user is empty.
func checkReplicationUser(ctx context.Context, db ledger.Querier, user string, p *problems) error {
	if user == "" {
		return nil
	}
	var may bool
	// Managed servers grant the right by membership in a role of their own.
	err := db.QueryRow(ctx, `select exists (select from pg_roles where rolname = $1 and (rolreplication or rolsuper)) or exists
		(select from pg_roles m join pg_roles u on u.rolname = $1
		 where m.rolname in ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin') and pg_has_role(u.oid, m.oid, 'member'))`, user).Scan(&may)
	if err != nil {
		return err
	}
	if !may {
		*p = append(*p, replication.MayNotReplicate(user))
	}
	return nil
}

// Grant grants a login for SQL what it needs. dsn is the connection string of the tables' owner.
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

// grantStatements returns the statements that grant the role what it needs of the outbox and of the ledger.
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
	for _, g := range ledgerRights {
		add("grant %s on table %s.%s", strings.Join(g.privileges, ", "), ledger, g.table)
	}
	add("grant select on table %s.outbox_migrations", ledger)
	if !s.Mapped() {
		add("grant select on table %s.event_outbox_status", ledger)
	}
	add("grant select on table %s.%s", ledger, retentionTable)
	add("grant execute on function %s.%s", ledger, partitionFunction)
	if !s.Mapped() {
		add("grant execute on function %s.%s", ledger, outboxPartitionFunction)
		add("grant execute on function %s.%s", ledger, outboxDropFunction)
	}
	return append(statements, cleanupStatements(s, role)...)
}
