package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// refusal says that Apply would refuse what it found. Trying again does not help.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// ExitCode is exitcode.Config.
func (r *refusal) ExitCode() int { return int(exitcode.Config) }

// Check refuses tables and views of our names that belong to roles that are not trusted. It is called before
// the ledger is read with an owner's rights: a view or a trigger would run its owner's code with those rights. The search_path
// of conn is pg_catalog alone.
func Check(ctx context.Context, conn *pgx.Conn, o Options) error {
	names := append([]string{}, ledgerTables...)
	if !o.Mapped {
		names = append(names, "event_outbox", "event_outbox_status")
	}
	rows, err := conn.Query(ctx, ledger.TrustedRoles+`
		select format('%I.%I belongs to role %I', nspname, relname, rolname)
		from pg_class c join pg_namespace n on n.oid = relnamespace join pg_roles r on r.oid = relowner
		where nspname = $1 and relname = any ($2) and relowner not in (select oid from trusted) order by relname`, o.Schema, names)
	if err != nil {
		return err
	}
	strangers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(strangers) == 0 {
		return err
	}
	return &refusal{strings.Join(strangers, "; ") + ", who could run code with your rights through it; drop it, or make it yours " +
		"(alter … owner to …) after looking at its triggers, rules and defaults; or put the ledger into a schema where others " +
		"cannot create anything, by source.ledger_schema"}
}

// Creators returns a warning if roles that are not trusted may create things in the ledger's schema, and an empty text
// otherwise.
func Creators(ctx context.Context, conn *pgx.Conn, schema string) (string, error) {
	rows, err := conn.Query(ctx, ledger.TrustedRoles+`
			select case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end
			from pg_namespace n, aclexplode(coalesce(nspacl, acldefault('n', nspowner)))
			where nspname = $1 and privilege_type = 'CREATE' and grantee not in (select oid from trusted) order by grantee`, schema)
	if err != nil {
		return "", err
	}
	roles, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(roles) == 0 {
		return "", err
	}
	who := "role " + roles[0]
	switch {
	case len(roles) > 1:
		who = "the roles " + strings.Join(roles, ", ")
	case roles[0] == "public":
		who = "every role (public)"
	}
	name := pgx.Identifier{schema}.Sanitize()
	return fmt.Sprintf("%s may create tables and functions in schema %s, where the ledger is; the connector uses none of them, but your "+
		"own statements might: revoke create on schema %s from %s; or put the ledger into a schema of its own by source.ledger_schema",
		who, name, name, strings.Join(roles, ", ")), nil
}
