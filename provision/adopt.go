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
	a, err := inspectAdopted(ctx, conn, cfg)
	if err != nil {
		return result, err
	}
	result.Differs = a.differs()
	if err := a.check(ctx, conn, cfg); err != nil || result.Differs == "" || !a.slot.isHere(a.server.Identity) {
		return result, err
	}
	result.Compares = a.another || a.promoted || a.slot.confirmedFlush > a.checkpoint.Confirmed
	if cfg.DryRun {
		return result, nil
	}
	if cfg.Confirm != nil {
		if err := cfg.Confirm(result); err != nil {
			return result, err
		}
	}
	adoption := ledger.Adoption{Identity: a.server.Identity, Another: a.another, Epoch: a.checkpoint.Epoch}
	if a.another || a.promoted {
		adoption.Timeline = 0 // the next session takes that for a promotion, and compares
	}
	err = cfg.ledger().Adopt(ctx, conn, cfg.Slot, adoption)
	result.Adopted = err == nil
	return result, err
}

// adopted is a database that is to be the one of the checkpoint.
type adopted struct {
	server     server
	slot       *slotRow // nil if there is none
	checkpoint *ledger.Checkpoint
	another    bool // the checkpoint is of another cluster or database
	promoted   bool // the server has a new timeline
}

// inspectAdopted looks at server, slot and checkpoint. It returns an error if there is no checkpoint that was ever ready.
func inspectAdopted(ctx context.Context, conn *pgx.Conn, cfg AdoptConfig) (a adopted, err error) {
	var p problems
	if a.server, err = checkServer(ctx, conn, &p); err != nil || len(p) > 0 {
		return a, cmp.Or(err, p.join())
	}
	a.server.Hosts = cfg.Hosts
	if a.slot, err = readSlot(ctx, conn, cfg.Slot); err != nil {
		return a, err
	}
	if a.checkpoint, err = readCheckpoint(ctx, conn, cfg.Source); err != nil {
		return a, err
	}
	if a.checkpoint == nil || a.checkpoint.State == ledger.Building {
		judge(cfg.Source, a.server, a.slot, a.checkpoint, &p)
		if len(p) == 0 {
			p.add(exitcode.Config, `slot %q was never ready, so there is nothing to adopt; run "outbox-cdc init"`, cfg.Slot)
		}
		return a, p.join()
	}
	a.another = isAnother(a.server.Identity, a.checkpoint.Identity)
	a.promoted = HasNewTimeline(a.server.Identity, a.checkpoint.Identity)
	return a, nil
}

// differs says how the database differs from the one of the checkpoint.
func (a *adopted) differs() string {
	now, then := a.server.Identity, a.checkpoint.Identity
	text := differs(now, then)
	if text == "" && !sameHosts(now, then) {
		return "a server that was reached by " + then.Hosts + ", and this one is reached by " + now.Hosts
	}
	return text
}

// check returns an error if nobody could stream from the slot after the adoption, or if somebody does now.
func (a *adopted) check(ctx context.Context, conn *pgx.Conn, cfg AdoptConfig) error {
	if !a.slot.isHere(a.server.Identity) {
		c := *a.checkpoint
		c.Identity = a.server.Identity
		if !a.another {
			c.Timeline = a.checkpoint.Timeline // a promotion may be why the slot is gone
		}
		var p problems
		judge(cfg.Source, a.server, a.slot, &c, &p)
		return p.join()
	}
	if a.slot.activePID != 0 {
		return streamsNow(ctx, conn, cfg.Source, a.slot)
	}
	if a.another {
		return checkComparable(ctx, conn, cfg.Source, a.slot, a.checkpoint)
	}
	return nil
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
