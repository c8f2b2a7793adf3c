package provision

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// CheckOrder returns an error if the outbox cannot be walked in the order of source.order_by: a column does not exist or may be null, or no
// index begins with the first column, so that each chunk would read the whole table.
func (s Source) CheckOrder(ctx context.Context, db ledger.Querier) error {
	columns := s.OrderBy
	if !slices.Contains(columns, s.Columns.ID) {
		columns = append(slices.Clone(columns), s.Columns.ID)
	}
	rows, err := db.Query(ctx, `select attname::text, attnotnull or typnotnull from pg_attribute a join pg_type t on t.oid = atttypid
		where attrelid = $1::text::regclass and attnum > 0 and not attisdropped and attname = any ($2)`, s.table(), columns)
	if err != nil {
		return fmt.Errorf("look at the columns of %s: %w", s.Table, err)
	}
	required, name, is := map[string]bool{}, "", false
	if _, err := pgx.ForEachRow(rows, []any{&name, &is}, func() error {
		required[name] = is
		return nil
	}); err != nil {
		return fmt.Errorf("look at the columns of %s: %w", s.Table, err)
	}
	var p problems
	for _, name := range columns {
		column := pgx.Identifier{name}.Sanitize()
		switch notNull, exists := required[name]; {
		case !exists:
			p.add(exitcode.Config, "table %s has no column %q, by which a backlog is to be read; correct source.order_by", s.Table, name)
		case !notNull:
			p.add(exitcode.Config, "column %q of %s may be null, and rows with NULL have no place in the order of a backlog; alter table %s alter column %s set not null, "+
				"or name other columns as source.order_by", name, s.Table, s.table(), column)
		}
	}
	if len(p) > 0 {
		return p.join()
	}
	var indexed bool
	err = db.QueryRow(ctx, `with recursive tables (oid) as (
			select $1::text::regclass::oid union all select inhrelid from pg_inherits join tables on inhparent = tables.oid)
		select not exists (select from tables join pg_class c using (oid) where relkind = 'r' and not exists (
			select from pg_index join pg_class x on x.oid = indexrelid join pg_am m on m.oid = relam join pg_attribute a on a.attrelid = c.oid and a.attnum = indkey[0]
			where indrelid = c.oid and attname = $2 and amname = 'btree' and indisvalid and indpred is null))`, s.table(), columns[0]).Scan(&indexed)
	if err != nil {
		return fmt.Errorf("look at the indexes of %s: %w", s.Table, err)
	}
	if !indexed {
		var list []string
		for _, name := range columns {
			list = append(list, pgx.Identifier{name}.Sanitize())
		}
		p.add(exitcode.Config, "no valid btree index of %s begins with %q, so each chunk of a backlog would read the whole table; as its owner: create index concurrently on %s (%s)",
			s.Table, columns[0], s.table(), strings.Join(list, ", "))
	}
	return p.join()
}
