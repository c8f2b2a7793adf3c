package provision

import (
	"context"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Source is an outbox, and the names of what is made around it.
type Source struct {
	Table        string // schema.table
	LedgerSchema string
	Slot         string
	Publication  string
	Columns      decoder.Columns
}

// SQL is what can be asked: a connection, a pool or a transaction.
type SQL interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// table is the quoted name of the outbox.
func (s Source) table() string {
	schema, name := s.tableName()
	return pgx.Identifier{schema, name}.Sanitize()
}

func (s Source) tableName() (schema, name string) {
	schema, name, _ = strings.Cut(s.Table, ".")
	return schema, name
}

// slotName is what PostgreSQL allows. The replication commands take the name unquoted, so nothing else may reach them.
var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

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

// Ledger names the ledger's tables in a statement that writes them as ledger.outbox_….
func (s Source) Ledger(sql string) string { return ledger.Schema(s.LedgerSchema).SQL(sql) }

func quoteLiteral(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }
