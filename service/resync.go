package service

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// ResyncOptions say how Resync works.
type ResyncOptions struct {
	// AdminDSN is the connection string of a login that may create the publication, if that is missing. By default it is the
	// configuration's source.dsn.
	AdminDSN string
	// SkipBacklog leaves undelivered what was written between the end of the old slot and the begin of the new one.
	SkipBacklog bool
	// Parked says what becomes of what the ledger still owes to sinks. On another server than before it has to be said.
	Parked provision.ParkedChoice
	// Timeout bounds the wait for open transactions when the slot is created. 0 means a minute.
	Timeout time.Duration
	// Waiting is called with the open transactions that Resync waits for. It is called on another goroutine. It may be nil.
	Waiting func([]provision.Blocker)
}

// ResyncResult says what Resync has done.
type ResyncResult struct {
	// Why says why the slot could not be streamed from. It is empty if it was sound.
	Why                string `json:"why,omitempty"`
	PublicationCreated bool   `json:"publication_created"`
	OldSlotDropped     bool   `json:"old_slot_dropped"`
	// ConsistentPoint is the LSN from which on the new slot sends what commits.
	ConsistentPoint string `json:"consistent_point"`
	// Jobs is how many sinks have a job, which finds in the outbox what the sink was not given.
	Jobs int `json:"jobs"`
	// Rows is about how many rows each job compares. RowsCounted says that it is exact.
	Rows        int64 `json:"rows"`
	RowsCounted bool  `json:"rows_counted"`
	// Discarded is how many parked events were given up.
	Discarded int64    `json:"discarded"`
	Warnings  []string `json:"warnings,omitempty"`
}

// Resync makes a slot anew that is lost, and files a job for each sink. The error may have a method ExitCode() int.
func Resync(ctx context.Context, cfg config.Config, o ResyncOptions) (ResyncResult, error) {
	setup, err := resyncConfig(cfg, o)
	if err != nil {
		return ResyncResult{}, err
	}
	made, err := provision.Resync(ctx, setup)
	result := ResyncResult{
		Why: made.Why, PublicationCreated: made.PublicationCreated, OldSlotDropped: made.Dropped, ConsistentPoint: made.ConsistentPoint.String(),
		Jobs: made.Jobs, Rows: made.Rows.Rows, RowsCounted: made.Rows.Exact, Discarded: made.Discarded, Warnings: made.Warnings,
	}
	return result, replication.ExplainUnreachable(err)
}

// ResyncPlan says why the slot has to be made anew, and returns in words, a step each, what Resync would do. It changes nothing. why is
// empty if the slot is sound.
func ResyncPlan(ctx context.Context, cfg config.Config, o ResyncOptions) (why string, steps []string, err error) {
	setup, err := resyncConfig(cfg, o)
	if err != nil {
		return "", nil, err
	}
	why, steps, err = provision.ResyncPlan(ctx, setup)
	return why, steps, replication.ExplainUnreachable(err)
}

func resyncConfig(cfg config.Config, o ResyncOptions) (provision.ResyncConfig, error) {
	dsn := cmp.Or(o.AdminDSN, string(cfg.Source.DSN))
	if err := sameDatabase(cfg, dsn); err != nil {
		return provision.ResyncConfig{}, err
	}
	processors, err := processorsOf(cfg)
	if err != nil {
		return provision.ResyncConfig{}, err
	}
	return provision.ResyncConfig{SetupConfig: provision.SetupConfig{
		Source: sourceOf(cfg, o.AdminDSN), DSN: dsn, ReplicationDSN: string(cfg.Source.ReplicationDSN),
		Connector: cfg.Name, Processors: processors,
		Backlog: provision.Backlog{None: o.SkipBacklog}, Parked: o.Parked, Timeout: o.Timeout, Waiting: o.Waiting,
	}}, nil
}

// resyncUnattended is Resync as a connector does it itself (source.on_slot_loss). It logs what it has done.
func resyncUnattended(ctx context.Context, cfg config.Config, logger *slog.Logger) error {
	setup, err := resyncConfig(cfg, ResyncOptions{
		Waiting: func(b []provision.Blocker) {
			logger.Warn("slot creation waits for open transactions", "slot", cfg.Source.Slot, "for", blockerText(b))
		},
	})
	if err != nil {
		return err
	}
	setup.IfLost = true
	setup.WaitingForLock = func(holder string) {
		logger.Warn("another session makes or drops the same, and is waited for", "slot", cfg.Source.Slot, "for", holder)
	}
	made, err := provision.Resync(ctx, setup)
	if err != nil {
		return err
	}
	logger.Warn("the slot was lost, and was made anew; jobs compare the outbox with the ledger, and what is missing is delivered", "slot", cfg.Source.Slot,
		"why", made.Why, "lsn", made.ConsistentPoint.String(), "jobs", made.Jobs, "rows", made.Rows.Rows, "counted", made.Rows.Exact)
	return nil
}
