package provision

import (
	"cmp"
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// AdoptConfig says which database Adopt makes the one of the checkpoint.
type AdoptConfig struct {
	Source
	// DSN is the connection string of a login that may write the ledger, such as the connector's.
	DSN string
	// DryRun says what would be done, and changes nothing.
	DryRun bool
	// Confirm is asked before anything is changed. Nothing is changed if it returns an error. If it is nil, nobody is asked.
	Confirm func(AdoptResult) error
	// WaitingForLock is called with a description of the connection that makes, drops or moves the same slot, if Adopt has to wait for its
	// end. It may be nil.
	WaitingForLock func(holder string)
}

// AdoptResult says what Adopt has done, or would do.
type AdoptResult struct {
	Slot string `json:"slot"`
	// Differs says how the database differs from the one of the checkpoint. If it is empty, there is nothing to do.
	Differs string `json:"differs"`
	// Compares says that the next session compares the outbox with the ledger: on another server the slot may have passed events that the
	// ledger does not know.
	Compares bool `json:"compares"`
	DryRun   bool `json:"dry_run"`
	Adopted  bool `json:"adopted"`
}

// Adopt makes this database the one of the checkpoint, because a person says that the outbox goes on here. It needs a slot that can be
// streamed from; without one, Resync makes a slot and does the rest too.
func Adopt(ctx context.Context, cfg AdoptConfig) (AdoptResult, error) {
	conn, err := lockSlot(ctx, cfg.Source, cfg.DSN, advisory.Wait{Tell: cfg.WaitingForLock})
	if err != nil {
		return AdoptResult{}, err
	}
	defer closeConn(ctx, conn)
	result, err := adoptLocked(ctx, conn, cfg)
	return result, advisory.ExplainTableLock(ctx, conn, err)
}

// adoptLocked is Adopt over a connection that holds the lock of the slot's name.
func adoptLocked(ctx context.Context, conn *pgx.Conn, cfg AdoptConfig) (AdoptResult, error) {
	result := AdoptResult{Slot: cfg.Slot, DryRun: cfg.DryRun}
	var p problems
	srv, err := checkServer(ctx, conn, &p)
	if err := cmp.Or(err, p.join()); err != nil {
		return result, err
	}
	srv.Hosts = cfg.Hosts
	slot, err := readSlot(ctx, conn, cfg.Slot)
	if err != nil {
		return result, err
	}
	c, err := readCheckpoint(ctx, conn, cfg.Source)
	if err != nil {
		return result, err
	}
	if c == nil || c.State == ledger.Building {
		judge(cfg.Source, srv, slot, c, &p)
		if len(p) == 0 {
			p.add(exitcode.Config, `slot %q was never ready, so there is nothing to adopt; run "outbox-cdc init"`, cfg.Slot)
		}
		return result, p.join()
	}
	result.Differs = differs(srv.Identity, c.Identity)
	another := isAnother(srv.Identity, c.Identity)
	if result.Differs == "" && !sameHosts(srv.Identity, c.Identity) {
		result.Differs = "a server that was reached by " + c.Hosts + ", and this one is reached by " + srv.Hosts
	}
	if !slot.isHere(srv.Identity) {
		adopted := *c
		adopted.Identity = srv.Identity
		if !another {
			adopted.Timeline = c.Timeline // a promotion may be why the slot is gone
		}
		judge(cfg.Source, srv, slot, &adopted, &p)
		return result, p.join()
	}
	if slot.activePID != 0 {
		return result, streamsNow(ctx, conn, cfg.Source, slot)
	}
	if result.Differs == "" {
		return result, nil
	}
	if another {
		if err := checkComparable(ctx, conn, cfg.Source, slot, c); err != nil {
			return result, err
		}
	}
	result.Compares = another || HasNewTimeline(srv.Identity, c.Identity) || slot.confirmedFlush > c.Confirmed
	if cfg.DryRun {
		return result, nil
	}
	if cfg.Confirm != nil {
		if err := cfg.Confirm(result); err != nil {
			return result, err
		}
	}
	a := ledger.Adoption{Identity: srv.Identity, Another: another, Epoch: c.Epoch}
	if another || HasNewTimeline(srv.Identity, c.Identity) {
		a.Timeline = 0 // the next session takes that for a promotion, and compares
	}
	err = cfg.ledger().Adopt(ctx, conn, cfg.Slot, a)
	result.Adopted = err == nil
	return result, err
}

// checkComparable returns an error if positions of the ledger may be those of other events here. Where another database has a slot that
// begins behind all of them, as after pg_upgrade from PostgreSQL 17 on, they are only old.
func checkComparable(ctx context.Context, conn *pgx.Conn, s Source, slot *slotRow, c *ledger.Checkpoint) error {
	beyond, err := s.ledger().HoldsRowsBeyond(ctx, conn, slot.confirmedFlush)
	if err != nil {
		return err
	}
	if beyond || slot.confirmedFlush < c.Confirmed {
		return exitcode.Errorf(exitcode.SlotLost, "slot %q stands at %s, and the ledger has positions beyond that, which were those of another server; %s",
			s.Slot, slot.confirmedFlush, StartAnew)
	}
	return nil
}
