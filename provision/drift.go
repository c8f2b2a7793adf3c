package provision

import (
	"context"
	"fmt"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// CheckDrift finds out whether the table that is streamed, by its OID, is still the outbox, and whether its inserts
// still come on the stream with every column that is needed. What has drifted shows on the stream only by the absence of
// rows, so it is asked again while streaming; it costs a few reads of the catalog.
//
// moved, where it is not empty, says that no table has the outbox's name any more. That does no harm yet, because the
// stream knows the table by its OID.
func CheckDrift(ctx context.Context, db SQL, s Source, table uint32) (moved string, err error) {
	var p problems
	moved, err = findDrift(ctx, db, s, table, &p)
	if err != nil {
		return "", fmt.Errorf("look whether %s and publication %q have changed: %w", s.Table, s.Publication, err)
	}
	return moved, p.join()
}

func findDrift(ctx context.Context, db SQL, s Source, table uint32, p *problems) (moved string, err error) {
	schema, name := s.tableName()
	var named *uint32  // what the outbox's name means now
	var called *string // what the table that is streamed is called now
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
			"give the outbox its name back, or make the new one the outbox: see docs/operations.md#swapped", s.Table, *named, table, was)
		return "", nil
	case called == nil:
		return fmt.Sprintf("table %s was dropped; what was written before is delivered, and the next start will be refused; "+
			"see docs/operations.md#swapped", s.Table), nil
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
