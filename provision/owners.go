package provision

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const statusView = "event_outbox_status"

// Mapped reports whether the outbox is a table of the user's own. Then init does not make the table, and there is no view of the
// status of its events.
func (s Source) Mapped() bool {
	return s.Table != s.LedgerSchema+".event_outbox" || s.Columns != decoder.DefaultColumns()
}

// CheckOwners refuses a ledger that belongs to somebody else. To read a view runs functions of its owner, and to write a table
// runs triggers of its owner, both with the rights of whoever reads or writes. So CheckOwners comes before the first statement
// that reads or writes the ledger. It reads catalogs only. It does not refuse a ledger because a table is missing.
//
// The owner must be a trusted role (ledger.TrustedRoles), or a role to which CREATE on the schema was granted by name. A role
// that may create things there only because PUBLIC may is refused, and so is a role that no longer may.
func CheckOwners(ctx context.Context, db ledger.Querier, s Source) error {
	rows, err := db.Query(ctx, ledger.TrustedRoles+`select format('%I.%I', n.nspname, c.relname), r.rolname::text,
			c.relkind = any (case when c.relname = $3 then '{v}' else '{r,p}' end::"char"[])
		from pg_class c
		join pg_namespace n on n.oid = c.relnamespace
		join pg_roles r on r.oid = c.relowner
		where n.nspname = $1 and (c.relname = any ($2) or $4 and c.relname = $3) and not (
			c.relkind = any (case when c.relname = $3 then '{v}' else '{r,p}' end::"char"[])
			and (c.relowner in (select oid from trusted)
				or exists (select from aclexplode(n.nspacl) a
					where a.privilege_type = 'CREATE' and a.grantee <> 0 and pg_has_role(c.relowner, a.grantee, 'usage'))))
		order by c.relname`, s.LedgerSchema, ledgerTables(), statusView, !s.Mapped())
	if err != nil {
		return fmt.Errorf("look whose the ledger is: %w", err)
	}
	var strange []string
	var name, owner string
	var kind bool // it is of the right kind: a table, or a view
	_, err = pgx.ForEachRow(rows, []any{&name, &owner, &kind}, func() error {
		if kind {
			strange = append(strange, fmt.Sprintf("%s belongs to role %q", name, owner))
		} else {
			strange = append(strange, fmt.Sprintf("%s of role %q is of another kind", name, owner))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look whose the ledger is: %w", err)
	}
	if strange == nil {
		return nil
	}
	return exitcode.Errorf(exitcode.Config, "this is not the ledger that init makes, and could run code with the rights of this login: %s; "+
		"drop what is not yours; or make it the property of a role that you trust (alter … owner to …), after looking at its triggers, rules and defaults; "+
		"or set source.ledger_schema to a schema where others cannot create anything; see docs/roles.md#shared-schema", strings.Join(strange, "; "))
}
