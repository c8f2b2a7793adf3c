package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Table is what the database says about the outbox.
type Table struct {
	OID    uint32
	idType uint32 // OID

	kind      string   // pg_class.relkind
	generated []string // the needed columns that are GENERATED … STORED, if the server can publish such columns
}

// readable reports whether the server writes WAL for the rows of the relation. If it does not, nothing else is checked.
func (t Table) readable() bool { return t.kind == "r" || t.kind == "p" }

// EventIDType is the type that the ledger's columns event_id need for this table.
func (t Table) EventIDType() string {
	if t.idType == pgtype.UUIDOID {
		return "uuid"
	}
	return "text"
}

// TableMissing is the error for an outbox that does not exist.
func TableMissing(s Source) error {
	return exitcode.Errorf(exitcode.Config, `table %s does not exist; create it, or correct source.table (init makes only event_outbox, in source.ledger_schema)`, s.Table)
}

// FindTable checks the outbox before anything else exists. It returns nil if there is no such table.
func FindTable(ctx context.Context, dsn string, s Source) (*Table, error) {
	var p problems
	var t *Table
	err := WithConn(ctx, dsn, s, func(conn *pgx.Conn) (err error) {
		t, err = checkNamedTable(ctx, conn, s, &p)
		return err
	})
	if err != nil {
		return nil, err
	}
	return t, p.join()
}

// checkNamedTable finds the outbox by its name, and checks it. It returns nil if there is no such table.
func checkNamedTable(ctx context.Context, db ledger.Querier, s Source, p *problems) (*Table, error) {
	schema, name := s.tableName()
	var oid uint32
	err := db.QueryRow(ctx, `select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $1 and c.relname = $2`, schema, name).Scan(&oid)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	t, err := checkTable(ctx, db, s, oid, p)
	if errors.Is(err, pgx.ErrNoRows) { // dropped between the two queries
		return nil, nil
	}
	return t, err
}

// checkTable checks whether every row that is written into the outbox comes on the stream as a row of this table, with every
// column that is needed. init, each start and the running connector call it.
func checkTable(ctx context.Context, db ledger.Querier, s Source, oid uint32, p *problems) (*Table, error) {
	t := Table{OID: oid}
	var persistence string
	var version int
	err := db.QueryRow(ctx, `select c.relkind::pg_catalog.text, c.relpersistence::pg_catalog.text,
			pg_catalog.current_setting('server_version_num')::pg_catalog.int4 from pg_catalog.pg_class c where c.oid = $1`, oid).
		Scan(&t.kind, &persistence, &version)
	if err != nil {
		return nil, err
	}
	if !t.readable() {
		p.add(exitcode.Config, "%s is no table, and only those have WAL to read; correct source.table", s.Table)
		return &t, nil
	}
	if persistence == "u" {
		p.add(exitcode.Config, "table %s is unlogged: it leaves nothing in the WAL; alter table %s set logged"+rowsLeftOut, s.Table, s.table())
	}
	if err := checkRelatives(ctx, db, s, &t, p); err != nil {
		return nil, err
	}
	if err := checkRules(ctx, db, s, oid, p); err != nil {
		return nil, err
	}
	return &t, checkColumns(ctx, db, s, &t, version, p)
}

// relation is a table that inherits from the outbox, directly or not: a partition, or one of old-style inheritance.
type relation struct {
	name, quoted string
	kind         string // pg_class.relkind
	unlogged     bool
	partition    bool
}

// checkRelatives refuses tables that inherit from the outbox and whose rows do not come on the stream as the outbox's own. The
// rows of a partition do come so, because of publish_via_partition_root, if the server writes them to the WAL.
func checkRelatives(ctx context.Context, db ledger.Querier, s Source, t *Table, p *problems) error {
	// This does not use pg_partition_tree, because it waits for a lock on each partition.
	rows, err := db.Query(ctx, `with recursive heirs (oid) as (
			select i.inhrelid from pg_catalog.pg_inherits i where i.inhparent = $1
			union all select i.inhrelid from pg_catalog.pg_inherits i join heirs h on i.inhparent = h.oid)
		select n.nspname::pg_catalog.text || '.' || c.relname::pg_catalog.text,
			pg_catalog.quote_ident(n.nspname::pg_catalog.text) || '.' || pg_catalog.quote_ident(c.relname::pg_catalog.text),
			c.relkind::pg_catalog.text, c.relpersistence = 'u', c.relispartition
		from heirs h join pg_catalog.pg_class c on c.oid = h.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where not c.relispartition or c.relkind = 'f' or c.relpersistence = 'u' order by 1`, t.OID)
	if err != nil {
		return err
	}
	heirs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (relation, error) {
		var r relation
		err := row.Scan(&r.name, &r.quoted, &r.kind, &r.unlogged, &r.partition)
		return r, err
	})
	if err != nil {
		return err
	}
	var children []string
	for _, r := range heirs {
		switch {
		case !r.partition:
			children = append(children, r.name)
		case r.kind == "f":
			p.add(exitcode.Config, "partition %s of %s is a foreign table: its rows are written to another server and are not in the stream; "+
				"detach it, and make an ordinary partition in its place: see docs/table.md#inheritance", r.name, s.Table)
		case r.unlogged && r.kind == "r": // a partitioned table may be unlogged before PostgreSQL 18, without any effect
			p.add(exitcode.Config, "partition %s of %s is unlogged: it leaves nothing in the WAL; alter table %s set logged"+rowsLeftOut, r.name, s.Table, r.quoted)
		}
	}
	if children != nil {
		p.add(exitcode.Config, "tables inherit from %s and are no partitions of it: %s; their rows are not in the stream as rows of %s; "+
			"end the inheritance (alter table … no inherit %s), and whatever writes into them instead of the outbox, or partition the outbox "+
			"declaratively: see docs/table.md#inheritance", s.Table, firstFew(children), s.Table, s.table())
	}
	return nil
}

// firstFew lists at most five names, and the number of the others.
func firstFew(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// checkRules refuses rules that replace an insert into the outbox with something else. A trigger can do the same, but the catalog
// does not say whether it does.
func checkRules(ctx context.Context, db ledger.Querier, s Source, oid uint32, p *problems) error {
	rows, err := db.Query(ctx, `select r.rulename::pg_catalog.text from pg_catalog.pg_rewrite r
		where r.ev_class = $1 and r.ev_type = '3' and r.is_instead and r.ev_enabled in ('O', 'A') order by 1`, oid)
	if err != nil {
		return err
	}
	rules, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, rule := range rules {
		p.add(exitcode.Config, "rule %q does something else instead of an insert into %s, so that the row is not in the stream; drop rule %s on %s"+rowsLeftOut,
			rule, s.Table, pgx.Identifier{rule}.Sanitize(), s.table())
	}
	return err
}

// checkColumns checks whether the needed columns exist, have types that can be used, and are written to the WAL. It sets t.idType
// and t.generated.
func checkColumns(ctx context.Context, db ledger.Querier, s Source, t *Table, version int, p *problems) error {
	columns, err := readColumns(ctx, db, t.OID)
	if err != nil {
		return err
	}
	types, names := map[string]uint32{}, decoder.TypeNames{}
	for _, c := range columns {
		types[c.name] = c.oid
		if c.typeName != "" {
			names[c.oid] = c.typeName
		}
	}
	if err := s.Columns.Check(types, names); err != nil {
		p.add(exitcode.Config, "table %s does not fit: %v; correct source.columns", s.Table, err)
	}
	t.idType = types[s.Columns.ID]
	needed := s.columns()
	for _, c := range columns {
		switch {
		case c.generated == "" || !slices.Contains(needed, c.name):
		case c.generated == "s" && version >= 180000:
			t.generated = append(t.generated, c.name) // checkPublication checks whether it is published
		case c.generated == "s":
			p.add(exitcode.Config, "column %q of %s is generated, and such columns are not in the stream before PostgreSQL 18; "+
				"alter table %s alter column %s drop expression, and let whatever writes the rows fill it, or name another column in source.columns: "+
				"see docs/table.md#generated", c.name, s.Table, s.table(), pgx.Identifier{c.name}.Sanitize())
		default:
			p.add(exitcode.Config, "column %q of %s is generated and not stored, so that it is never in the stream; "+
				"make it an ordinary column, or name another one in source.columns: see docs/table.md#generated", c.name, s.Table)
		}
	}
	return nil
}

// tableColumn is a column of the outbox, needed or not.
type tableColumn struct {
	name      string
	oid       uint32 // of its type
	typeName  string // empty if the type is one of PostgreSQL's own
	generated string // pg_attribute.attgenerated
}

func readColumns(ctx context.Context, db ledger.Querier, table uint32) ([]tableColumn, error) {
	rows, err := db.Query(ctx, `select a.attname::pg_catalog.text, t.oid, case when n.nspname = 'pg_catalog' then ''
			when t.typtype = 'd' then n.nspname::pg_catalog.text || '.' || t.typname::pg_catalog.text || ' (a domain over ' || pg_catalog.format_type(t.typbasetype, null) || ')'
			else n.nspname::pg_catalog.text || '.' || t.typname::pg_catalog.text end, a.attgenerated::pg_catalog.text
		from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid join pg_catalog.pg_namespace n on n.oid = t.typnamespace
		where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum`, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (tableColumn, error) {
		var c tableColumn
		err := row.Scan(&c.name, &c.oid, &c.typeName, &c.generated)
		return c, err
	})
}

// columns returns the names of the columns that the table must have.
func (s Source) columns() []string {
	c := s.Columns
	return slices.DeleteFunc([]string{
		c.ID, c.AggregateType, c.AggregateID, c.EventType, c.EventVersion, c.Payload, c.Metadata, c.CreatedAt, c.MaxRetries,
		c.TenantID, c.CorrelationID, c.CausationID,
	}, func(name string) bool { return name == "" })
}
