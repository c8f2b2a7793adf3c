package provision

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// checkOrder refuses an outbox that cannot be walked in the order of source.order_by: a row with NULL in a column of the order has no place
// in it, and without an index each chunk would sort the whole table.
func checkOrder(ctx context.Context, db ledger.Querier, s Source, t *Table, p *problems) error {
	order := s.walkOrder()
	rows, err := db.Query(ctx, `select name, attnum is not null, coalesce(attnotnull, false) or coalesce((select typnotnull from pg_type where oid = atttypid), false)
		from unnest($2::text[]) with ordinality as o (name, place) left join pg_attribute on attrelid = $1 and attname = name and attnum > 0 and not attisdropped
		order by place`, t.OID, order)
	if err != nil {
		return err
	}
	var name string
	var exists, required bool
	before := len(*p)
	_, err = pgx.ForEachRow(rows, []any{&name, &exists, &required}, func() error {
		column := pgx.Identifier{name}.Sanitize()
		switch {
		case !exists:
			p.add(exitcode.Config, "%s has no column %q, by which source.order_by walks a backlog; correct source.order_by", s.Table, name)
		case !required:
			p.add(exitcode.Config, "column %q of %s may be null, and a backlog would leave out such rows: alter table %s alter column %s set not null; or name other columns as source.order_by",
				name, s.Table, s.table(), column)
		}
		return nil
	})
	if err != nil || len(*p) > before {
		return err
	}
	var lacking []string
	rows, err = db.Query(ctx, `with recursive tables (oid) as (select $1::oid union all select inhrelid from pg_inherits join tables on inhparent = tables.oid)
		select format('%I.%I', nspname, relname) from tables join pg_class c using (oid) join pg_namespace n on n.oid = relnamespace
		where relkind = 'r' and not exists (select from pg_index i join pg_class x on x.oid = indexrelid join pg_am m on m.oid = x.relam
			where indrelid = c.oid and amname = 'btree' and indisvalid and indpred is null
				and (select array_agg(attname::text order by k.place) from unnest(indkey::int2[]) with ordinality as k (num, place)
					join pg_attribute a on a.attrelid = indrelid and a.attnum = k.num where k.place <= cardinality($2::text[])) = $2)
		order by 1`, t.OID, order)
	if err == nil {
		lacking, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil || len(lacking) == 0 {
		return err
	}
	var columns []string
	for _, c := range s.withID(order) {
		columns = append(columns, pgx.Identifier{c}.Sanitize())
	}
	on := "(" + strings.Join(columns, ", ") + ")"
	var statements []string
	for _, table := range lacking {
		statements = append(statements, "create index concurrently on "+table+" "+on)
	}
	if t.kind == "p" { // the partitions that are to come get it from here
		statements = append(statements, "create index on "+s.table()+" "+on)
	}
	p.add(exitcode.Config, "no btree index of %s begins with %s, so a backlog cannot be walked in the order of source.order_by; as its owner: %s",
		firstFew(lacking), strings.Join(order, ", "), strings.Join(statements, "; "))
	return nil
}

// walkOrder returns the columns of source.order_by up to the id. Behind a unique key nothing is ordered.
func (s Source) walkOrder() []string {
	if i := slices.Index(s.OrderBy, s.Columns.ID); i >= 0 {
		return s.OrderBy[:i+1]
	}
	if len(s.OrderBy) == 0 {
		return []string{s.Columns.ID}
	}
	return s.OrderBy
}

// withID returns the columns with the id at their end.
func (s Source) withID(columns []string) []string {
	if slices.Contains(columns, s.Columns.ID) {
		return columns
	}
	return append(slices.Clone(columns), s.Columns.ID)
}
