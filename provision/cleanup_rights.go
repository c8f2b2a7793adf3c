package provision

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Cleanup says what the connector deletes. Only for that its login needs the rights to do so.
type Cleanup struct {
	Outbox bool // old rows of the outbox
	Ledger bool // old partitions of the delivery log
}

// cleanupRight is a right that the login needs for the cleanup.
type cleanupRight struct {
	what       string // "table" or "function"
	schema     string
	name       string // of a function with its arguments
	privileges []string
}

// cleanupRights returns what the login needs to delete what it is told to delete. The report of the cleanup belongs to both.
func cleanupRights(s Source) []cleanupRight {
	var rights []cleanupRight
	if s.Cleanup.Outbox {
		schema, name := s.tableName()
		rights = append(rights, cleanupRight{"table", schema, name, []string{"delete"}})
		if !s.Mapped() {
			rights = append(rights, cleanupRight{"function", s.LedgerSchema, dayFunction, []string{"execute"}})
		}
	}
	if s.Cleanup.Ledger {
		rights = append(rights, cleanupRight{"function", s.LedgerSchema, dropFunction, []string{"execute"}})
	}
	if rights != nil {
		rights = append(rights, cleanupRight{"table", s.LedgerSchema, retentionTable, []string{"insert", "select", "update"}})
	}
	return rights
}

// cleanupStatements returns the statements that grant the role what the cleanup needs.
func cleanupStatements(s Source, role string) []string {
	var statements []string
	for _, r := range cleanupRights(s) {
		name := pgx.Identifier{r.schema, r.name}.Sanitize()
		if r.what == "function" {
			name = pgx.Identifier{r.schema}.Sanitize() + "." + r.name
		}
		statements = append(statements, fmt.Sprintf("grant %s on %s %s to %s", strings.Join(r.privileges, ", "), r.what, name, pgx.Identifier{role}.Sanitize()))
	}
	return statements
}

// LackingCleanup returns the statements by which the owner of the tables grants the login of db what it lacks for the cleanup; none if
// nothing is deleted. Without these rights the connector runs all the same, and deletes nothing. LackingCleanup reads catalogs only.
func LackingCleanup(ctx context.Context, db ledger.Querier, s Source) ([]string, error) {
	rights := cleanupRights(s)
	if rights == nil {
		return nil, nil
	}
	var kinds, schemas, names, privileges []string
	for _, r := range rights {
		for _, privilege := range r.privileges {
			kinds, schemas, names, privileges = append(kinds, r.what), append(schemas, r.schema), append(names, r.name), append(privileges, privilege)
		}
	}
	rows, err := db.Query(ctx, `with wanted as (
			select n, kind, nsp.oid as namespace, schema, name, privilege from unnest($1::text[], $2::text[], $3::text[], $4::text[]) with ordinality
				as w (kind, schema, name, privilege, n) join pg_namespace nsp on nspname = schema),
		found as (
			select n, kind, schema, quote_ident(name) as name, privilege, has_table_privilege(c.oid, privilege) as has
				from wanted join pg_class c on kind = 'table' and relnamespace = namespace and relname = name
			union all
			select n, kind, schema, name, privilege, has_function_privilege(p.oid, privilege)
				from wanted join pg_proc p on kind = 'function' and pronamespace = namespace and (name <> $5
						or exists (select from pg_class where relnamespace = namespace and relname = 'event_outbox' and relkind = 'p'))
					and proname || '(' || replace(replace(oidvectortypes(proargtypes), 'timestamp with time zone', 'timestamptz'), 'integer', 'int') || ')' = name)
		select format('grant %s on %s %I.%s to %I', string_agg(privilege, ', ' order by n), kind, schema, name, current_user)
			from found where not has group by kind, schema, name order by min(n)`, kinds, schemas, names, privileges, dayFunction)
	if err != nil {
		return nil, fmt.Errorf("look at the rights of the cleanup: %w", err)
	}
	lacking, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look at the rights of the cleanup: %w", err)
	}
	return lacking, nil
}
