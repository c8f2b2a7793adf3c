package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// DestroyConfig says what Destroy removes.
type DestroyConfig struct {
	Source
	// DSN is the connection string of a login that owns the publication and may write the ledger.
	DSN string
	// ReplicationDSN is the connection string of a login with the attribute REPLICATION.
	ReplicationDSN string
	// WaitingForLock is called with a description of the connection that makes or drops the same slot, if Destroy has to wait for its end. It may
	// be nil.
	WaitingForLock func(holder string)
}

// DestroyResult says what Destroy has removed. The rest was not there, or Destroy has failed.
type DestroyResult struct {
	SlotDropped, PublicationDropped, CheckpointDeleted bool
	// Left names what Destroy has found and has not removed, because it has failed.
	Left []string
}

// What DestroyResult.Left names.
const (
	leftSlot        = "the replication slot"
	leftPublication = "the publication"
	leftCheckpoint  = "the checkpoint"
)

// removed takes something off the list of what is left.
func (r *DestroyResult) removed(what string) {
	if r.Left = slices.DeleteFunc(r.Left, func(s string) bool { return s == what }); len(r.Left) == 0 {
		r.Left = nil
	}
}

// Destroy removes what Setup has made. It drops the slot first, because the slot makes the server keep WAL, and deletes the
// checkpoint last, because only the checkpoint shows that Setup made the slot: after a failure in between, Destroy can go on.
// It never touches the outbox or the rest of the ledger. It refuses a slot that somebody streams from, and a slot that Setup
// did not make.
func Destroy(ctx context.Context, cfg DestroyConfig) (DestroyResult, error) {
	var result DestroyResult
	conn, err := lockSlot(ctx, cfg.Source, cfg.DSN, advisory.Wait{Tell: cfg.WaitingForLock})
	if err != nil {
		return result, err
	}
	defer closeConn(ctx, conn)
	slot, err := readSlot(ctx, conn, cfg.Slot)
	if err != nil {
		return result, err
	}
	c, err := readCheckpoint(ctx, conn, cfg.Source)
	if err != nil {
		return result, NeedsOwner(err)
	}
	var publication bool
	err = conn.QueryRow(ctx, "select exists (select from pg_publication where pubname = $1)", cfg.Publication).Scan(&publication)
	if err != nil {
		return result, err
	}
	for _, found := range []struct {
		found bool
		name  string
	}{{slot != nil, leftSlot}, {publication, leftPublication}, {c != nil, leftCheckpoint}} {
		if found.found {
			result.Left = append(result.Left, found.name)
		}
	}
	if slot != nil {
		if err := checkDroppable(ctx, conn, cfg.Source, slot, c); err != nil {
			return result, err
		}
		repl, err := connectReplication(ctx, cfg.ReplicationDSN)
		if err != nil {
			return result, err
		}
		defer closeReplication(ctx, repl)
		if err := dropSlot(ctx, repl, cfg.Slot); err != nil {
			return result, err
		}
		result.SlotDropped = true
		result.removed(leftSlot)
	}
	if publication {
		if _, err := conn.Exec(ctx, "drop publication if exists "+pgx.Identifier{cfg.Publication}.Sanitize()); err != nil {
			return result, ownerError(fmt.Sprintf("drop publication %q", cfg.Publication), err)
		}
		result.PublicationDropped = true
		result.removed(leftPublication)
	}
	if c != nil {
		if err := cfg.ledger().DeleteCheckpoint(ctx, conn, cfg.Slot); err != nil {
			return result, NeedsOwner(err)
		}
		result.CheckpointDeleted = true
		result.removed(leftCheckpoint)
	}
	return result, nil
}

// checkDroppable returns an error if the slot must not be dropped: it is not ours, or somebody streams from it.
func checkDroppable(ctx context.Context, db ledger.Querier, s Source, slot *slotRow, c *ledger.Checkpoint) error {
	var database string
	if err := db.QueryRow(ctx, "select current_database()").Scan(&database); err != nil {
		return err
	}
	if slot.database != "" && slot.database != database { // a physical slot has no database
		return exitcode.Errorf(exitcode.SlotLost, "replication slot %q belongs to database %q, this is %q; correct source.slot or source.dsn", s.Slot, slot.database, database)
	}
	if c == nil || slot.plugin != outputPlugin {
		return exitcode.Errorf(exitcode.SlotLost, `replication slot %q was not made by "outbox-cdc init"; `+
			"whoever made it may drop it: select pg_drop_replication_slot('%s')", s.Slot, s.Slot)
	}
	if slot.activePID == 0 {
		return nil
	}
	return streamsNow(ctx, db, s, slot)
}

// NeedsOwner adds the remedy and the exit code to the error of a login that lacks a right. It returns every other error as it is.
func NeedsOwner(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42501" {
		return exitcode.Errorf(exitcode.Privilege, "%w; give an owner's login by --dsn or OUTBOX_ADMIN_URL", err)
	}
	return err
}

// ownerError wraps the error of a step that only an owner may do. If the login lacks the right, the error has an exit code and
// names the remedy.
func ownerError(step string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return exitcode.Errorf(exitcode.Privilege, "%s: %s; give an owner's login by --dsn or OUTBOX_ADMIN_URL", step, pg.Message)
	}
	return fmt.Errorf("%s: %w", step, err)
}
