package service

import (
	"context"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// AdoptOptions say how Adopt works.
type AdoptOptions struct {
	// DryRun says what would be done, and changes nothing.
	DryRun bool
	// Confirm is asked before anything is changed. Nothing is changed if it returns an error. If it is nil, nobody is asked.
	Confirm func(provision.AdoptResult) error
	// WaitingForLock is called with a description of the connection that works on the same slot, while Adopt waits for its end. It may be
	// nil.
	WaitingForLock func(holder string)
}

// Adopt makes the database that source.dsn leads to the one of the checkpoint: see provision.Adopt.
func Adopt(ctx context.Context, cfg config.Config, o AdoptOptions) (provision.AdoptResult, error) {
	r, err := provision.Adopt(ctx, provision.AdoptConfig{
		Source: source(cfg), DSN: string(cfg.Source.DSN), DryRun: o.DryRun, Confirm: o.Confirm, WaitingForLock: o.WaitingForLock,
	})
	return r, replication.ExplainUnreachable(err)
}
