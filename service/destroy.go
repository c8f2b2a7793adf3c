package service

import (
	"cmp"
	"context"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// DestroyOptions say how much Destroy takes away.
type DestroyOptions struct {
	// AdminDSN is of a login with an owner's rights; the configuration's own by default.
	AdminDSN string
	// Ledger takes away the ledger's tables as well, with what is still owed and every dead letter.
	Ledger bool
	// WaitingForLock is told of the session that makes or drops the same, for whose end Destroy waits; it may be nil.
	WaitingForLock func(holder string)
}

// DestroyResult says what Destroy has taken away; what it has not was not there.
type DestroyResult struct {
	SlotDropped        bool `json:"slot_dropped"`
	PublicationDropped bool `json:"publication_dropped"`
	CheckpointDeleted  bool `json:"checkpoint_deleted"`
	LedgerDropped      bool `json:"ledger_dropped"`
}

// Destroy takes away what Init has made, but never the outbox.
func Destroy(ctx context.Context, cfg config.Config, o DestroyOptions) (DestroyResult, error) {
	dsn := cmp.Or(o.AdminDSN, string(cfg.Source.DSN))
	m := migrations.Options{Schema: cfg.Source.LedgerSchema, Mapped: source(cfg).Mapped(), WaitingForLock: o.WaitingForLock}
	if err := checkOwners(ctx, cfg, dsn); err != nil {
		return DestroyResult{}, unreachable(err)
	}
	gone, err := provision.Destroy(ctx, provision.DestroyConfig{
		Source: source(cfg), DSN: dsn, ReplicationDSN: string(cfg.Source.ReplicationDSN),
		WaitingForLock: o.WaitingForLock,
	})
	result := DestroyResult{SlotDropped: gone.SlotDropped, PublicationDropped: gone.PublicationDropped, CheckpointDeleted: gone.CheckpointDeleted}
	if err != nil || !o.Ledger {
		return result, unreachable(err)
	}
	result.LedgerDropped, err = migrations.Drop(ctx, dsn, m)
	return result, migrationError(err)
}
