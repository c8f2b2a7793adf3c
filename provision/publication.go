package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// publicationSQL returns the statement that creates the publication. It publishes our table alone, and inserts alone: if a
// publication publishes the updates or deletes of a table without a replica identity, PostgreSQL refuses the application's own
// updates and deletes. publish_via_partition_root is for a partitioned table: without it the rows arrive under the names of the
// partitions.
func publicationSQL(s Source) string {
	return fmt.Sprintf("create publication %s for table %s with (publish = 'insert', publish_via_partition_root = true)",
		pgx.Identifier{s.Publication}.Sanitize(), s.table())
}

// generatedPublicationSQL returns the statement for a publication that publishes generated columns too, from PostgreSQL 18 on.
func generatedPublicationSQL(s Source) string {
	return strings.TrimSuffix(publicationSQL(s), ")") + ", publish_generated_columns = stored)"
}

// rowsLeftOut warns about rows that no repair of the publication brings back: when PostgreSQL decodes a row, it uses the
// publication as it was when the row was written.
const rowsLeftOut = "; what was written meanwhile is not in the stream: see docs/table.md#publication"

// checkPublication checks whether the publication publishes every insert into the table, with every column that is needed.
func checkPublication(ctx context.Context, db ledger.Querier, s Source, table *Table, p *problems) error {
	if !table.readable() {
		return nil // checkTable has reported it already, and no publication can publish it
	}
	partitioned := table.kind == "p"
	var all, inserts, viaRoot bool
	err := db.QueryRow(ctx, `select puballtables, pubinsert, pubviaroot from pg_catalog.pg_publication where pubname = $1`, s.Publication).
		Scan(&all, &inserts, &viaRoot)
	if errors.Is(err, pgx.ErrNoRows) {
		p.add(exitcode.Config, `publication %q does not exist; run "outbox-cdc init", or create it: %s`, s.Publication, publicationSQL(s))
		return nil
	} else if err != nil {
		return err
	}
	name := pgx.Identifier{s.Publication}.Sanitize()
	if all {
		p.add(exitcode.Config, `publication %q is of all tables, which sends the ledger's own rows back to outbox-cdc; `+
			`drop it and run "outbox-cdc init", or set source.publication to another name`, s.Publication)
		return nil
	}
	if !inserts {
		p.add(exitcode.Config, "publication %q does not publish inserts; alter publication %s set (publish = 'insert')"+rowsLeftOut, s.Publication, name)
	}
	if partitioned && !viaRoot {
		p.add(exitcode.Config, "publication %q publishes the rows of %s under the names of its partitions; "+
			"alter publication %s set (publish_via_partition_root = true)"+rowsLeftOut, s.Publication, s.Table, name)
	}
	tables, err := publishedTables(ctx, db, s)
	if err != nil {
		return err
	}
	remedy := fmt.Sprintf("alter publication %s set table %s", name, s.table())
	i := slices.IndexFunc(tables, func(t publishedTable) bool { return t.oid == table.OID })
	switch {
	case i >= 0:
		t := tables[i]
		if t.filter != "" {
			p.add(exitcode.Config, "publication %q leaves out rows of %s by a filter: %s; %s"+rowsLeftOut, s.Publication, s.Table, t.filter, remedy)
		}
		if missing := without(without(s.columns(), table.generated), t.columns); t.columns != nil && len(missing) > 0 {
			p.add(exitcode.Config, "publication %q leaves out columns of %s: %s; %s", s.Publication, s.Table, strings.Join(missing, ", "), remedy)
		}
		if missing := without(table.generated, t.columns); len(missing) > 0 {
			p.add(exitcode.Config, "publication %q leaves out columns of %s that are generated: %s; %s; alter publication %s set (publish_generated_columns = stored): "+
				"see docs/table.md#generated", s.Publication, s.Table, strings.Join(missing, ", "), remedy, name)
		}
	case partitioned && !viaRoot: // reported above
	default:
		root, err := publishedAncestor(ctx, db, table.OID, tables)
		if err != nil {
			return err
		}
		if root != "" && viaRoot {
			p.add(exitcode.Config, "table %s is a partition of %s, which publication %q publishes too, so that its rows come as rows of that one; "+
				"alter publication %s drop table %s (where it publishes a whole schema, set source.publication to another name)"+rowsLeftOut,
				s.Table, root, s.Publication, name, root)
			break
		}
		text := fmt.Sprintf("publication %q does not publish table %s; alter publication %s add table %s"+rowsLeftOut, s.Publication, s.Table, name, s.table())
		if others := namesOutsideLedger(tables); others != nil { // perhaps the table that was the outbox before, with rows to deliver
			text += fmt.Sprintf("; it publishes %s: if %s has taken that one's place, see docs/table.md#swapped first", firstFew(others), s.Table)
		}
		p.add(exitcode.Config, "%s", text)
	}
	if slices.ContainsFunc(tables, func(t publishedTable) bool { return t.ledger }) {
		p.add(exitcode.Config, "publication %q publishes the ledger's own tables, which sends their rows back to outbox-cdc; %s", s.Publication, remedy)
	}
	return nil
}

// checkMissing reports that the outbox does not exist. It may exist under another name; then the publication still publishes it.
func checkMissing(ctx context.Context, db ledger.Querier, s Source, p *problems) error {
	tables, err := publishedTables(ctx, db, s)
	if err != nil {
		return err
	}
	if others := namesOutsideLedger(tables); others != nil {
		p.add(exitcode.Config, "table %s does not exist, and publication %q publishes %s; if that is the outbox, set source.table to its name, or give it "+
			"its old name back: see docs/table.md#swapped", s.Table, s.Publication, firstFew(others))
		return nil
	}
	p.add(exitcode.Config, `table %s does not exist; run "outbox-cdc init", or correct source.table`, s.Table)
	return nil
}

// PublicationVersion returns a text that differs from the one before if the publication was changed in between, as far as the
// change concerns the table. It differs even if the change was undone again, which leaves no other trace. It is empty if the
// publication does not exist.
func PublicationVersion(ctx context.Context, db ledger.Querier, s Source, table uint32) (string, error) {
	var version string
	err := db.QueryRow(ctx, `select pg_catalog.concat_ws('/', p.oid, p.xmin, r.oid, r.xmin) from pg_catalog.pg_publication p
		left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid and r.prrelid = $2 where p.pubname = $1`, s.Publication, table).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return version, err
}

// publishedAncestor returns the quoted name of a published table of which the table is a partition, at any level. It returns ""
// if there is none.
func publishedAncestor(ctx context.Context, db ledger.Querier, table uint32, tables []publishedTable) (string, error) {
	published := make([]uint32, len(tables))
	for i, t := range tables {
		published[i] = t.oid
	}
	var name string
	err := db.QueryRow(ctx, `with recursive ancestors (oid) as (
			select $1::pg_catalog.oid
			union all select i.inhparent from ancestors a join pg_catalog.pg_class c on c.oid = a.oid and c.relispartition
				join pg_catalog.pg_inherits i on i.inhrelid = a.oid)
		select pg_catalog.quote_ident(n.nspname::pg_catalog.text) || '.' || pg_catalog.quote_ident(c.relname::pg_catalog.text)
		from ancestors a join pg_catalog.pg_class c on c.oid = a.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where c.oid = any ($2::pg_catalog.oid[]) limit 1`, table, published).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return name, err
}

// publishedTable is a table of a publication.
type publishedTable struct {
	oid     uint32
	name    string // schema.table
	ledger  bool   // it is one of the ledger's own
	filter  string
	columns []string // nil if all are published; always nil on PostgreSQL 14
}

// publishedTables reads pg_publication_tables. It reads the rows as JSON, because PostgreSQL 14 has no columns for filters and
// column lists.
func publishedTables(ctx context.Context, db ledger.Querier, s Source) ([]publishedTable, error) {
	rows, err := db.Query(ctx, `select c.oid, n.nspname::pg_catalog.text || '.' || c.relname::pg_catalog.text,
			n.nspname = $2 and c.relname = any ($3) or exists (select from pg_inherits i join pg_class l on l.oid = i.inhparent
				join pg_namespace ln on ln.oid = l.relnamespace where i.inhrelid = c.oid and l.relname = 'outbox_delivery_log' and ln.nspname = $2),
			coalesce(t ->> 'rowfilter', ''),
			case when jsonb_typeof(t -> 'attnames') = 'array' then array(select jsonb_array_elements_text(t -> 'attnames')) end
		from (select to_jsonb(p) as t from pg_publication_tables p where pubname = $1) as published
		join pg_namespace n on n.nspname = t ->> 'schemaname'
		join pg_class c on c.relnamespace = n.oid and c.relname = t ->> 'tablename'`,
		s.Publication, s.LedgerSchema, ledgerTables())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (publishedTable, error) {
		var t publishedTable
		err := row.Scan(&t.oid, &t.name, &t.ledger, &t.filter, &t.columns)
		return t, err
	})
}

// namesOutsideLedger returns the names of the tables that are not the ledger's.
func namesOutsideLedger(tables []publishedTable) []string {
	var names []string
	for _, t := range tables {
		if !t.ledger {
			names = append(names, t.name)
		}
	}
	return names
}

// without returns the elements of a that are not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

// createPublication creates the publication. It is no error if it exists already: the init of another slot may have been
// faster.
func createPublication(ctx context.Context, conn *pgx.Conn, s Source) error {
	_, err := conn.Exec(ctx, publicationSQL(s))
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42710" {
		return nil
	}
	if err != nil {
		return ownerError(fmt.Sprintf("create publication %q", s.Publication), err)
	}
	return nil
}
