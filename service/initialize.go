package service

import (
	"context"
	"log/slog"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// initialize makes what is missing before a run: tables, publication, slot and checkpoint.
func initialize(ctx context.Context, cfg config.Config, logger *slog.Logger) error {
	mapped := cfg.Source.Table != cfg.Source.LedgerSchema+".event_outbox"
	if err := migrations.Apply(ctx, string(cfg.Source.DSN), migrations.Options{Schema: cfg.Source.LedgerSchema, Mapped: mapped}); err != nil {
		return err
	}
	_, err := replication.Setup(ctx, replication.SetupConfig{
		Source: replication.Source{
			Table: cfg.Source.Table, LedgerSchema: cfg.Source.LedgerSchema, Slot: cfg.Source.Slot,
			Publication: cfg.Source.Publication, Columns: decoder.Columns(cfg.Source.Columns),
		},
		DSN: string(cfg.Source.DSN), ReplicationDSN: string(cfg.Source.ReplicationDSN),
		Waiting: func(b []replication.Blocker) { logger.Warn("slot creation waits for open transactions", "for", b) },
	})
	return err
}
