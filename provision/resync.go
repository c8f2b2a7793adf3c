package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// ResyncConfig says how Resync makes a slot anew.
type ResyncConfig struct {
	// SetupConfig names the slot and the sinks. Of Backlog only None counts: without it, a job is filed for each sink.
	SetupConfig
	// IfLost makes Resync do nothing if the slot is sound by now, and refuse if the server is another one. It is for a connector that does
	// it unattended.
	IfLost bool
}

// ResyncResult says what Resync has done.
type ResyncResult struct {
	SetupResult
	Dropped bool   // what was left of the old slot
	Why     string // why the slot had to be made anew; empty if it was sound
}

// ErrSound says that Resync was to make a slot anew only if it is lost, and that it is not.
var ErrSound = errors.New("the slot is sound")

// Resync makes a slot anew that cannot be streamed from any more, and files a job for each sink, which finds what the sink was not given.
//
// The order of its steps is that of Setup, and for the same reasons. The checkpoint says "building" before the slot is dropped and made,
// and keeps the prefix of the old slot until it is ready again. The transaction that makes it ready files the jobs. So Resync may be
// called again after it was killed anywhere, and no session streams in between.
func Resync(ctx context.Context, cfg ResyncConfig) (ResyncResult, error) {
	wait := advisory.Wait{Timeout: cfg.Timeout, Tell: cfg.WaitingForLock}
	if !cfg.IfLost {
		wait = advisory.Wait{Timeout: time.Millisecond} // somebody who calls it by hand shall know that another one is at work
	}
	conn, err := lockSlot(ctx, cfg.Source, cfg.DSN, wait)
	if err != nil {
		return ResyncResult{}, err
	}
	defer closeConn(ctx, conn)
	if err := advisory.LimitTableLocks(ctx, conn, cfg.Timeout); err != nil {
		return ResyncResult{}, err
	}
	result, err := resyncLocked(ctx, conn, cfg)
	return result, advisory.ExplainTableLock(ctx, conn, err)
}

// resyncLocked is Resync over a connection that holds the lock of the slot's name.
func resyncLocked(ctx context.Context, conn *pgx.Conn, cfg ResyncConfig) (ResyncResult, error) {
	var result ResyncResult
	f, why, err := inspectLost(ctx, conn, cfg)
	if err != nil {
		return result, err
	}
	if result.Warnings, err = encodingWarnings(ctx, conn); err != nil {
		return result, err
	}
	result.Why, result.Dropped = why, f.slot != nil
	cfg.Backlog.Some = !cfg.Backlog.None
	if !f.publication {
		if err := createPublication(ctx, conn, cfg.Source); err != nil {
			return result, err
		}
		result.PublicationCreated = true
		cfg.did("published")
	}
	if err := makeSlot(ctx, conn, cfg.SetupConfig, newSlot{existing: f, begin: beginAgain, finish: finishAgain}, &result.SetupResult); err != nil {
		return result, err
	}
	slot, err := readSlot(ctx, conn, cfg.Slot)
	if err != nil {
		return result, err
	}
	warnings, err := failoverWarnings(ctx, conn, cfg.Source, slot)
	result.Warnings = append(result.Warnings, warnings...)
	return result, err
}

// ResyncPlan lists what Resync would do, and changes nothing. why says why the slot has to be made anew; it is empty if the slot is sound.
func ResyncPlan(ctx context.Context, cfg ResyncConfig) (why string, steps []string, err error) {
	err = WithConn(ctx, cfg.DSN, cfg.Source, func(conn *pgx.Conn) error {
		var f existing
		if f, why, err = inspectLost(ctx, conn, cfg); err != nil {
			return err
		}
		if !f.publication {
			steps = append(steps, publicationSQL(cfg.Source))
		}
		if f.slot != nil {
			steps = append(steps, "drop replication slot "+cfg.Slot)
		}
		steps = append(steps, createStep(cfg.Source))
		steps = append(steps, cfg.parkedStep(f.owed)...)
		if cfg.Backlog.None {
			steps = append(steps, "leave undelivered what no sink was given between the old slot and the new one")
		} else {
			steps = append(steps, jobsStep(cfg.SetupConfig, f.rows))
		}
		return nil
	})
	return why, steps, err
}

// inspectLost looks at everything before Resync changes anything. Its error names everything that is wrong. why is as in ResyncPlan.
func inspectLost(ctx context.Context, conn *pgx.Conn, cfg ResyncConfig) (f existing, why string, err error) {
	var p problems
	f.command = "resync"
	if err := f.inspectServer(ctx, conn, cfg.SetupConfig, &p); err != nil {
		return f, "", err
	}
	if f.checkpoint == nil || f.checkpoint.State == ledger.Building && !f.checkpoint.Rebuilding {
		return f, "", exitcode.Errorf(exitcode.Config, `slot %q was never ready, so there is nothing to make anew; run "outbox-cdc init"`, cfg.Slot)
	}
	if why, err = f.whyLost(cfg); err != nil {
		return f, "", err
	}
	if now, then := f.server.Identity, f.checkpoint.Identity; f.slot.isElsewhere(now) && differs(now, then) != "" {
		return f, "", otherDatabase(cfg.Slot, now, then, f.slot.goOn(now))
	}
	if f.slot != nil {
		if err := checkDroppable(ctx, conn, cfg.Source, f.slot, f.checkpoint); err != nil {
			return f, "", err
		}
	}
	if differs(f.server.Identity, f.checkpoint.Identity) != "" || cfg.Parked != "" {
		if err := checkOwed(ctx, conn, cfg.SetupConfig, &f, &p); err != nil {
			return f, "", err
		}
	}
	if len(cfg.Processors) == 0 {
		p.add(exitcode.Config, "the configuration has no sinks, and resync delivers what is missing to the sinks that it has; add them")
	}
	if f.table, err = checkNamedTable(ctx, conn, cfg.Source, &p); err != nil {
		return f, "", err
	}
	switch {
	case f.table == nil:
		p = append(p, TableMissing(cfg.Source))
	case f.publication:
		if err := checkPublication(ctx, conn, cfg.Source, f.table, &p); err != nil {
			return f, "", err
		}
	}
	if f.table != nil && !cfg.Backlog.None {
		if err := checkOrder(ctx, conn, cfg.Source, f.table, &p); err != nil {
			return f, "", err
		}
	}
	if err := p.join(); err != nil {
		return f, "", err
	}
	if !cfg.Backlog.None {
		f.rows, err = estimateRows(ctx, conn, cfg.Source, ledger.JobFilter{})
		f.walked = f.rows
	}
	return f, why, err
}

// whyLost says why the slot cannot be streamed from. It returns "" if it can.
func (f *existing) whyLost(cfg ResyncConfig) (string, error) {
	var reasons problems
	judge(cfg.Source, f.server, f.slot, f.checkpoint, &reasons)
	another := differs(f.server.Identity, f.checkpoint.Identity)
	if cfg.IfLost && another != "" {
		return "", reasons.join()
	}
	switch {
	case len(reasons) == 0 && cfg.IfLost:
		return "", ErrSound
	case f.checkpoint.Rebuilding:
		return "an earlier resync did not end", nil
	case len(reasons) == 0:
		return "", nil
	case another != "": // whoever is asked whether to go on has to know it, whatever has become of the slot
		return "its checkpoint belongs to " + another, nil
	case f.slot == nil:
		return "it is gone", nil
	case f.slot.lost != "":
		return fmt.Sprintf("it was invalidated (%s)", f.slot.lost), nil
	}
	return reasons.join().Error(), nil
}

// beginAgain is newSlot.begin of a slot that is made anew.
func beginAgain(ctx context.Context, conn *pgx.Conn, cfg SetupConfig) (*ledger.Checkpoint, error) {
	return cfg.ledger().BeginRebuild(ctx, conn, cfg.Slot)
}

// finishAgain is newSlot.finish of a slot that is made anew. A sink that was not known before has a job only if its configuration asks for
// one: it is not owed what was lost.
func finishAgain(ctx context.Context, tx pgx.Tx, f finishing) error {
	s := f.ledger()
	known, err := s.ProcessorIDs(ctx, tx, f.Connector)
	if err != nil {
		return err
	}
	ids, err := f.register(ctx, tx, f.point)
	if err != nil {
		return err
	}
	if err := f.settleParked(ctx, tx); err != nil {
		return err
	}
	if f.Backlog.None {
		return f.leaveOut(ctx, tx, idsOf(ids))
	}
	before := slices.DeleteFunc(idsOf(ids), func(id int32) bool { return !slices.Contains(known, id) })
	return f.fileJobs(ctx, tx, ledger.JobOfResync, before)
}
