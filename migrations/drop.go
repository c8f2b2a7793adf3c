package migrations

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// ledgerTables are the tables of the ledger, in the order in which they are dropped. The outbox is not among them.
var ledgerTables = []string{
	"outbox_delivery_log", "outbox_parked", "outbox_checkpoints", "outbox_backlog", "outbox_metrics", "outbox_processors", "outbox_retention",
	"outbox_migrations",
}

// Drop removes the ledger, and never the outbox. It reports whether there was a ledger. It refuses to remove a ledger that has
// a checkpoint, because a slot still uses it. Of the options it needs Schema.
func Drop(ctx context.Context, dsn string, o Options) (bool, error) {
	found := false
	err := withConn(ctx, dsn, o, func(conn *pgx.Conn, schema string) error {
		o.Schema = schema
		if err := lock(ctx, conn, o); err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
			found, err = dropLedger(ctx, tx, o)
			return err
		})
	})
	return found && err == nil, err
}

func dropLedger(ctx context.Context, tx pgx.Tx, o Options) (bool, error) {
	var ours, outbox bool
	quoted := pgx.Identifier{o.Schema}.Sanitize()
	// Other software has tables named outbox_processors; a ledger has checkpoints.
	err := tx.QueryRow(ctx, "select to_regclass($1 || '.outbox_checkpoints') is not null, to_regclass($1 || '.event_outbox') is not null", quoted).Scan(&ours, &outbox)
	if err != nil || !ours {
		return false, err
	}
	if err := Check(ctx, tx.Conn(), o); err != nil {
		return false, err
	}
	var slots *string
	if err := tx.QueryRow(ctx, "select string_agg(slot_name, ', ') from "+quoted+".outbox_checkpoints").Scan(&slots); err != nil {
		return false, err
	}
	if slots != nil {
		return false, fmt.Errorf("the ledger in schema %q still serves the slots %s; destroy those first", o.Schema, *slots)
	}
	statements := []string{"drop view if exists " + quoted + ".event_outbox_status"}
	for _, name := range ledgerTables {
		statements = append(statements, "drop table if exists "+quoted+"."+name)
	}
	statements = append(statements, "drop function if exists "+quoted+".outbox_make_partitions(timestamptz, int)",
		"drop function if exists "+quoted+".outbox_drop_log_partitions(timestamptz, boolean)",
		"drop function if exists "+quoted+".outbox_make_event_partitions(timestamptz, int)",
		"drop function if exists "+quoted+".outbox_drop_event_partition()",
		"drop function if exists "+quoted+".outbox_drop_event_day(oid, bigint, bigint)")
	if outbox {
		for _, column := range []string{"id", "aggregate_type", "aggregate_id", "event_type", "tenant_id", "created_at"} {
			statements = append(statements, fmt.Sprintf("drop function if exists %[1]s.outbox_status_%s(%[1]s.event_outbox)", quoted, column))
		}
	} else { // if there is an outbox, it needs this function to make its ids
		statements = append(statements, "drop function if exists "+quoted+".outbox_uuid_v7()")
	}
	for _, s := range statements {
		if _, err := tx.Exec(ctx, s); err != nil {
			return false, fmt.Errorf("%s: %w", s, err)
		}
	}
	return true, nil
}
