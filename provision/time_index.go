package provision

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// keepRows is the remedy that always helps.
const keepRows = "or keep the rows: retention.outbox: off"

// checkCleanup checks whether old rows of the outbox can be found by their time, if they are to be deleted. Without an index each chunk
// of the cleanup would read the whole table. It returns warnings about what is no reason to refuse.
func checkCleanup(ctx context.Context, db ledger.Querier, s Source, t *Table, p *problems) (warnings []string, err error) {
	if !s.Cleanup.Outbox || !t.readable() {
		return nil, nil
	}
	column := s.Columns.CreatedAt
	if column == "" {
		p.add(exitcode.Config, "source.columns names no created_at, and without their time rows of %s cannot be deleted by age; name it, "+keepRows, s.Table)
		return nil, nil
	}
	var typ uint32
	var required bool
	rows, err := db.Query(ctx, `select case when t.typtype = 'd' then t.typbasetype else t.oid end, a.attnotnull or t.typnotnull
		from pg_attribute a join pg_type t on t.oid = a.atttypid where a.attrelid = $1 and a.attname = $2 and a.attnum > 0 and not a.attisdropped`, t.OID, column)
	if err != nil {
		return nil, err
	}
	found := false
	_, err = pgx.ForEachRow(rows, []any{&typ, &required}, func() error {
		found = true
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case !found: // checkTable has said it
		return nil, nil
	case typ != pgtype.TimestamptzOID && typ != pgtype.TimestampOID:
		p.add(exitcode.Config, "column %q of %s is no timestamp, so rows cannot be deleted by their age; name another column as source.columns.created_at, "+keepRows, column, s.Table)
		return nil, nil
	case !required:
		warnings = append(warnings, fmt.Sprintf("column %q of %s may be null, and rows without a time are never deleted; alter table %s alter column %s set not null",
			column, s.Table, s.table(), pgx.Identifier{column}.Sanitize()))
	}
	return warnings, checkTimeIndex(ctx, db, s, t, p)
}

// checkTimeIndex refuses an outbox of which a table with rows has no usable index whose first column is the time.
func checkTimeIndex(ctx context.Context, db ledger.Querier, s Source, t *Table, p *problems) error {
	rows, err := db.Query(ctx, `with recursive tables (oid) as (
			select $1::oid union all select inhrelid from pg_inherits join tables on inhparent = tables.oid)
		select format('%I.%I', nspname, relname), coalesce((select string_agg(format('%I.%I', nspname, x.relname), ', ' order by x.relname)
				from pg_index join pg_class x on x.oid = indexrelid join pg_attribute a on a.attrelid = c.oid and a.attnum = indkey[0]
				where indrelid = c.oid and attname = $2 and not indisvalid), '')
		from tables join pg_class c using (oid) join pg_namespace n on n.oid = relnamespace
		where relkind = 'r' and not exists (
			select from pg_index join pg_class x on x.oid = indexrelid join pg_am m on m.oid = relam join pg_attribute a on a.attrelid = c.oid and a.attnum = indkey[0]
			where indrelid = c.oid and attname = $2 and amname = 'btree' and indisvalid and indpred is null)
		order by 1`, t.OID, s.Columns.CreatedAt)
	if err != nil {
		return err
	}
	type lack struct{ table, invalid string }
	lacks, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l lack, err error) {
		err = row.Scan(&l.table, &l.invalid)
		return l, err
	})
	if err != nil || len(lacks) == 0 {
		return err
	}
	on := "(" + pgx.Identifier{s.Columns.CreatedAt}.Sanitize() + ")"
	if !s.Mapped() {
		on = "(created_at, id)"
	}
	var names, statements []string
	for _, l := range lacks {
		names = append(names, l.table)
		if l.invalid != "" {
			statements = append(statements, "drop index concurrently "+l.invalid)
		}
		name := ""
		if !s.Mapped() && t.kind == "r" {
			name = "idx_outbox_created_at "
		}
		statements = append(statements, fmt.Sprintf("create index concurrently %son %s %s", name, l.table, on))
	}
	if t.kind == "p" { // the partitions that are to come get it from here
		statements = append(statements, fmt.Sprintf("create index on %s %s", s.table(), on))
	}
	p.add(exitcode.Config, "no valid btree index of %s begins with the time, by which old rows are found to be deleted; as its owner: %s; "+keepRows,
		firstFew(names), strings.Join(statements, "; "))
	return nil
}
