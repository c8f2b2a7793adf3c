package migrations

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// dropped are the tables of the ledger. The outbox is not among them.
var dropped = []string{
	"outbox_delivery_log", "outbox_parked", "outbox_checkpoints", "outbox_backlog", "outbox_metrics", "outbox_processors", versionTable,
}

// Drop takes the ledger away, and never the outbox. It says whether there was one. Where a checkpoint says that a slot
// still uses it, it refuses.
func Drop(ctx context.Context, dsn, schema string) (bool, error) {
	db, err := open(dsn, Options{Schema: schema})
	if err != nil {
		return false, err
	}
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	var ours, outbox bool
	// Other software has tables named outbox_processors; a ledger has checkpoints.
	err = tx.QueryRowContext(ctx, "select to_regclass('outbox_checkpoints') is not null, to_regclass('event_outbox') is not null").Scan(&ours, &outbox)
	if err != nil || !ours {
		return false, err
	}
	var slots sql.NullString
	err = tx.QueryRowContext(ctx, "select string_agg(slot_name, ', ') from outbox_checkpoints").Scan(&slots)
	if err != nil {
		return false, err
	}
	if slots.Valid {
		return false, fmt.Errorf("the ledger in schema %q still serves the slots %s; destroy those first", schema, slots.String)
	}
	statements := []string{
		"drop view if exists event_outbox_status",
		"drop table if exists " + strings.Join(dropped, ", "),
		"drop function if exists outbox_make_partitions(timestamptz, int)",
	}
	if !outbox { // whose ids are made by it
		statements = append(statements, "drop function if exists outbox_uuid_v7()")
	}
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return false, fmt.Errorf("%s: %w", s, err)
		}
	}
	return true, tx.Commit()
}
