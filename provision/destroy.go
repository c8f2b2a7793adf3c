package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// DestroyConfig says what Destroy takes away.
type DestroyConfig struct {
	Source
	// DSN is of a login that owns the publication, and may write the ledger.
	DSN string
	// ReplicationDSN is of a login that may replicate.
	ReplicationDSN string
	// WaitingForLock is told of the session that makes or drops the same slot, for whose end Destroy waits; it may be nil.
	WaitingForLock func(holder string)
}

// DestroyResult says what Destroy has taken away; what it has not was not there.
type DestroyResult struct {
	SlotDropped, PublicationDropped, CheckpointDeleted bool
}

// Destroy takes away what Setup has made: the slot first, which keeps WAL, and the checkpoint last, which knows whose slot
// it was. It never touches the outbox, nor the ledger otherwise. A slot that is streamed from, or that Setup did not
// make, is refused.
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
		return result, err
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
	}
	err = conn.QueryRow(ctx, "select exists (select from pg_publication where pubname = $1)", cfg.Publication).Scan(&result.PublicationDropped)
	if err != nil {
		return result, err
	}
	if _, err := conn.Exec(ctx, "drop publication if exists "+pgx.Identifier{cfg.Publication}.Sanitize()); err != nil {
		result.PublicationDropped = false
		return result, ownerError(fmt.Sprintf("drop publication %q", cfg.Publication), err)
	}
	if c != nil {
		if err := deleteCheckpoint(ctx, conn, cfg.Source); err != nil {
			return result, err
		}
		result.CheckpointDeleted = true
	}
	return result, nil
}

func checkDroppable(ctx context.Context, db SQL, s Source, slot *Slot, c *checkpointRow) error {
	var database string
	if err := db.QueryRow(ctx, "select current_database()").Scan(&database); err != nil {
		return err
	}
	if slot.Database != "" && slot.Database != database { // a physical one has none
		return exitcode.Errorf(exitcode.SlotLost, "replication slot %q belongs to database %q, this is %q; correct source.slot or source.dsn", s.Slot, slot.Database, database)
	}
	if c == nil || slot.Plugin != outputPlugin {
		return exitcode.Errorf(exitcode.SlotLost, `replication slot %q was not made by "outbox-cdc init"; `+
			"whoever made it may drop it: select pg_drop_replication_slot('%s')", s.Slot, s.Slot)
	}
	if slot.ActivePID == 0 {
		return nil
	}
	who := fmt.Sprintf("pid %d", slot.ActivePID)
	var user, application, address string
	err := db.QueryRow(ctx, `select coalesce(usename, ''), coalesce(application_name, ''), coalesce(host(client_addr), 'local')
		from pg_stat_activity where pid = $1`, slot.ActivePID).Scan(&user, &application, &address)
	switch {
	case err == nil:
		who += fmt.Sprintf(" (user %q, application %q, address %s)", user, application, address)
	case !errors.Is(err, pgx.ErrNoRows): // gone meanwhile: the pid is all that can be said
		return err
	}
	return fmt.Errorf("%w: %s streams from slot %q; stop it first", replication.ErrSlotInUse, who, s.Slot)
}

// ownerError tells apart what only an owner may do.
func ownerError(step string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return exitcode.Errorf(exitcode.Privilege, "%s: %s; give an owner's login by --dsn or OUTBOX_ADMIN_URL", step, pg.Message)
	}
	return fmt.Errorf("%s: %w", step, err)
}
