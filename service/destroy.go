package service

import (
	"cmp"
	"context"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// DestroyOptions say what Destroy removes.
type DestroyOptions struct {
	// AdminDSN is the connection string of a login with an owner's rights. By default it is the configuration's source.dsn.
	AdminDSN string
	// Ledger removes the ledger's tables as well, together with all parked events and dead letters.
	Ledger bool
	// WaitingForLock is called with a description of the connection that makes or drops the same things, while Destroy waits for its end. It may be
	// nil.
	WaitingForLock func(holder string)
}

// DestroyResult says what Destroy has removed. What it has not removed did not exist.
type DestroyResult struct {
	SlotDropped        bool `json:"slot_dropped"`
	PublicationDropped bool `json:"publication_dropped"`
	CheckpointDeleted  bool `json:"checkpoint_deleted"`
	LedgerDropped      bool `json:"ledger_dropped"`
}

// Destroy removes what Init has made, but never the outbox.
func Destroy(ctx context.Context, cfg config.Config, o DestroyOptions) (DestroyResult, error) {
	dsn := cmp.Or(o.AdminDSN, string(cfg.Source.DSN))
	m := migrations.Options{Schema: cfg.Source.LedgerSchema, Mapped: source(cfg).Mapped(), WaitingForLock: o.WaitingForLock}
	if err := checkOwners(ctx, cfg, dsn); err != nil {
		return DestroyResult{}, replication.ExplainUnreachable(err)
	}
	gone, err := provision.Destroy(ctx, provision.DestroyConfig{
		Source: source(cfg), DSN: dsn, ReplicationDSN: string(cfg.Source.ReplicationDSN),
		WaitingForLock: o.WaitingForLock,
	})
	result := DestroyResult{SlotDropped: gone.SlotDropped, PublicationDropped: gone.PublicationDropped, CheckpointDeleted: gone.CheckpointDeleted}
	if err != nil || !o.Ledger {
		return result, replication.ExplainUnreachable(err)
	}
	result.LedgerDropped, err = migrations.Drop(ctx, dsn, m)
	return result, migrationError(err)
}
