package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// publicationSQL creates the publication: of our table alone, and of inserts alone. One that publishes updates or deletes
// of a table without a replica identity makes the application's own fail. publish_via_partition_root matters where
// the table is partitioned: otherwise the rows arrive under the names of its partitions.
func publicationSQL(s Source) string {
	return fmt.Sprintf("create publication %s for table %s with (publish = 'insert', publish_via_partition_root = true)",
		pgx.Identifier{s.Publication}.Sanitize(), s.table())
}

// leftOut warns of rows that no repair of the publication brings back: PostgreSQL decides when it decodes a row, by the
// publication as it was when the row was written.
const leftOut = "; what was written meanwhile is not in the stream: see docs/operations.md#publication"

// CheckPublication finds out whether the publication still publishes every insert into the table, with every column that
// is needed. What has drifted shows on the stream only by the absence of rows, so it is asked again while streaming; it
// costs two reads of the catalog.
func CheckPublication(ctx context.Context, db SQL, s Source, table uint32) error {
	var p problems
	if err := checkPublication(ctx, db, s, table, &p); err != nil {
		return fmt.Errorf("check publication %q: %w", s.Publication, err)
	}
	return p.join()
}

func checkPublication(ctx context.Context, db SQL, s Source, table uint32, p *problems) error {
	var all, inserts, viaRoot, partitioned bool
	err := db.QueryRow(ctx, `select puballtables, pubinsert, pubviaroot, exists (select from pg_partitioned_table where partrelid = $2)
		from pg_publication where pubname = $1`, s.Publication, table).Scan(&all, &inserts, &viaRoot, &partitioned)
	if errors.Is(err, pgx.ErrNoRows) {
		p.add(ErrConfig, `publication %q does not exist; run "outbox-cdc init", or create it: %s`, s.Publication, publicationSQL(s))
		return nil
	} else if err != nil {
		return err
	}
	name := pgx.Identifier{s.Publication}.Sanitize()
	if all {
		p.add(ErrConfig, `publication %q is of all tables, which sends the ledger's own rows back to outbox-cdc; `+
			`drop it and run "outbox-cdc init", or set source.publication to another name`, s.Publication)
		return nil
	}
	if !inserts {
		p.add(ErrConfig, "publication %q does not publish inserts; alter publication %s set (publish = 'insert')"+leftOut, s.Publication, name)
	}
	if partitioned && !viaRoot {
		p.add(ErrConfig, "publication %q publishes the rows of %s under the names of its partitions; "+
			"alter publication %s set (publish_via_partition_root = true)"+leftOut, s.Publication, s.Table, name)
	}
	tables, err := publishedTables(ctx, db, s)
	if err != nil {
		return err
	}
	remedy := fmt.Sprintf("alter publication %s set table %s", name, s.table())
	i := slices.IndexFunc(tables, func(t publishedTable) bool { return t.oid == table })
	switch {
	case i >= 0:
		t := tables[i]
		if t.filter != "" {
			p.add(ErrConfig, "publication %q leaves out rows of %s by a filter: %s; %s"+leftOut, s.Publication, s.Table, t.filter, remedy)
		}
		if missing := without(s.columns(), t.columns); t.columns != nil && len(missing) > 0 {
			p.add(ErrConfig, "publication %q leaves out columns of %s: %s; %s", s.Publication, s.Table, strings.Join(missing, ", "), remedy)
		}
	case partitioned && !viaRoot: // said already
	default:
		p.add(ErrConfig, "publication %q does not publish table %s; alter publication %s add table %s"+leftOut, s.Publication, s.Table, name, s.table())
	}
	if slices.ContainsFunc(tables, func(t publishedTable) bool { return t.ledger }) {
		p.add(ErrConfig, "publication %q publishes the ledger's own tables, which sends their rows back to outbox-cdc; %s", s.Publication, remedy)
	}
	return nil
}

// publishedTable is a table of a publication. columns is nil where all are published (PostgreSQL 14 says nothing).
type publishedTable struct {
	oid     uint32
	ledger  bool
	filter  string
	columns []string
}

// publishedTables reads pg_publication_tables as JSON: PostgreSQL 14 has no column for filters and column lists.
func publishedTables(ctx context.Context, db SQL, s Source) ([]publishedTable, error) {
	rows, err := db.Query(ctx, `select c.oid,
			n.nspname = $2 and (c.relname = any ($3) or c.relname ~ '^outbox_delivery_log_[0-9]{8}$'),
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
		err := row.Scan(&t.oid, &t.ledger, &t.filter, &t.columns)
		return t, err
	})
}

// without gives what of a is not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

// createPublication does so; another init, of another slot, may have been faster.
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
