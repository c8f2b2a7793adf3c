package provision

import (
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Source names an outbox and everything that belongs to it in the database.
type Source struct {
	Table        string // schema.table
	LedgerSchema string
	Slot         string
	Publication  string
	Columns      decoder.Columns
	// OrderBy are the columns that give the order in which a backlog is walked; the id always comes last.
	OrderBy []string
	// Failover asks for a slot that standbys have a copy of. Only PostgreSQL 17 and later have that.
	Failover bool
	Cleanup  Cleanup
	// Hosts are the hosts and ports of source.dsn, as they are configured (dsn.Hosts). If they are empty, they are not compared with those
	// of the checkpoint.
	Hosts string
}

// table is the quoted name of the outbox.
func (s Source) table() string {
	schema, name := s.tableName()
	return pgx.Identifier{schema, name}.Sanitize()
}

// tableName splits the name of the outbox into schema and table.
func (s Source) tableName() (schema, name string) {
	schema, name, _ = strings.Cut(s.Table, ".")
	return schema, name
}

// OutboxTable is the outbox as package ledger reads it and deletes from it.
func (s Source) OutboxTable() ledger.OutboxTable {
	schema, name := s.tableName()
	c := s.Columns
	return ledger.OutboxTable{
		Schema: schema, Name: name, ID: c.ID, AggregateType: c.AggregateType, AggregateID: c.AggregateID, EventType: c.EventType,
		TenantID: c.TenantID, CreatedAt: c.CreatedAt,
	}
}

// slotName matches the names that PostgreSQL allows for a slot. Replication commands take the name without quotes, so no other
// name may get into one.
var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// checkNames returns an error if a name is missing, or cannot be one.
func (s Source) checkNames() error {
	var p problems
	if !slotName.MatchString(s.Slot) {
		p.add(exitcode.Config, "slot %q: a slot's name is made of 1 to 63 of a-z, 0-9 and _", s.Slot)
	}
	if schema, name := s.tableName(); schema == "" || name == "" {
		p.add(exitcode.Config, "table %q: write it as schema.table", s.Table)
	}
	if s.Publication == "" || s.LedgerSchema == "" {
		p.add(exitcode.Config, "publication and ledger schema must be named")
	}
	return p.join()
}

// ledger is where the ledger's tables are.
func (s Source) ledger() ledger.Schema { return ledger.Schema(s.LedgerSchema) }

// quoteLiteral returns s as a string literal of SQL.
func quoteLiteral(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }
