package service

import (
	"cmp"
	"context"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// SkipOptions say what Skip passes.
type SkipOptions struct {
	// AdminDSN is the connection string of a login with an owner's rights. By default it is the configuration's source.dsn.
	AdminDSN string
	// LSN names the transaction, as the connector's message does.
	LSN pglogrepl.LSN
	// DryRun says what would be passed, and changes nothing.
	DryRun bool
	// Confirm is asked before anything is changed. Nothing is changed if it returns an error. If it is nil, nobody is asked.
	Confirm func(provision.SkipResult) error
	// WaitingForLock is called with a description of the connection that works on the same slot, while Skip waits for its end. It may be
	// nil.
	WaitingForLock func(holder string)
}

// Skip passes one transaction that the stream cannot pass: see provision.Skip.
func Skip(ctx context.Context, cfg config.Config, o SkipOptions) (provision.SkipResult, error) {
	dsn := cmp.Or(o.AdminDSN, string(cfg.Source.DSN))
	if err := sameDatabase(cfg, dsn); err != nil {
		return provision.SkipResult{}, err
	}
	r, err := provision.Skip(ctx, provision.SkipConfig{
		Source: sourceOf(cfg, o.AdminDSN), DSN: dsn, ReplicationDSN: string(cfg.Source.ReplicationDSN), MaxEventBytes: int(cfg.Delivery.MaxEventBytes),
		LSN: o.LSN, DryRun: o.DryRun, Confirm: o.Confirm, WaitingForLock: o.WaitingForLock,
	})
	return r, provision.NeedsOwner(replication.ExplainUnreachable(err))
}
