package provision

import (
	"context"
	"fmt"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// CheckDrift checks two things: whether the table with this OID, which is streamed, is still the one that the outbox's name
// means, and whether all its inserts still come on the stream, with every column that is needed. A running connector asks this
// again and again, because the stream itself does not show such a change: rows are merely absent. A check costs a few reads of
// the catalog.
//
// If no table has the outbox's name any more, moved says so. This does no harm yet, because the stream knows the table by its
// OID.
func CheckDrift(ctx context.Context, db ledger.Querier, s Source, table uint32) (moved string, err error) {
	var p problems
	moved, err = findDrift(ctx, db, s, table, &p)
	if err != nil {
		return "", fmt.Errorf("look whether %s and publication %q have changed: %w", s.Table, s.Publication, err)
	}
	return moved, p.join()
}

// findDrift does the checks of CheckDrift. It adds what is wrong to p; its own error means that it could not check.
func findDrift(ctx context.Context, db ledger.Querier, s Source, table uint32, p *problems) (moved string, err error) {
	schema, name := s.tableName()
	var named *uint32  // the OID of the table that has the outbox's name now; nil if there is none
	var called *string // the present name of the table that is streamed; nil if it was dropped
	err = db.QueryRow(ctx, `select (select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
				where n.nspname = $1 and c.relname = $2),
			(select n.nspname::pg_catalog.text || '.' || c.relname::pg_catalog.text
				from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = $3)`,
		schema, name, table).Scan(&named, &called)
	if err != nil {
		return "", err
	}
	switch {
	case named != nil && *named != table:
		was := "was dropped"
		if called != nil {
			was = "is " + *called + " now"
		}
		p.add(exitcode.Config, "%s is another relation now, with OID %d; outbox-cdc streams the one with OID %d, which %s. Rows of the new one are not delivered: "+
			"give the outbox its name back, or make the new one the outbox: see docs/table.md#swapped", s.Table, *named, table, was)
		return "", nil
	case called == nil:
		return fmt.Sprintf("table %s was dropped; what was written before is delivered, and the next start will be refused; "+
			"see docs/table.md#swapped", s.Table), nil
	case named == nil:
		moved = fmt.Sprintf("table %s is called %s now; its rows are still delivered, but the next start will be refused; "+
			"set source.table to %s, or give it its name back", s.Table, *called, *called)
		s.Table = *called
	}
	t, err := checkTable(ctx, db, s, table, p)
	if err != nil {
		return "", err
	}
	return moved, checkPublication(ctx, db, s, t, p)
}
