package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// createSlot creates the slot over repl, and meanwhile asks over conn which transactions the server waits for. It returns the
// slot's consistent point and the name of its snapshot, which is valid until the next command on repl.
func createSlot(ctx context.Context, repl *pgconn.PgConn, conn *pgx.Conn, cfg SetupConfig) (pglogrepl.LSN, string, error) {
	timeout := cmp.Or(cfg.Timeout, time.Minute)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s", timeout))
	defer cancel()
	levels, err := readWALLevels(ctx, conn)
	if err != nil {
		return 0, "", err
	}
	look := func(ctx context.Context) ([]Blocker, error) {
		found, err := blockers(ctx, conn, repl.PID())
		if err == nil && len(found) == 0 && levels.raises() {
			return raising(ctx, conn, repl.PID())
		}
		return found, err
	}
	watching, stop := context.WithCancel(ctx)
	var last []Blocker
	var wg sync.WaitGroup
	wg.Go(func() { last = watchBlockers(watching, look, cfg.Waiting) })
	slot, err := createSlotCommand(ctx, repl, cfg.Source)
	stop()
	wg.Wait()
	if err != nil {
		return 0, "", createError(ctx, cfg.Slot, err, last)
	}
	point, err := pglogrepl.ParseLSN(slot.ConsistentPoint)
	return point, slot.SnapshotName, err
}

// createError explains why a slot could not be created. blockers are the transactions that the server waited for last.
func createError(ctx context.Context, slot string, err error, blockers []Blocker) error {
	if ctx.Err() != nil {
		err = fmt.Errorf("create slot %q: %w", slot, context.Cause(ctx))
		if len(blockers) == 0 {
			return err
		}
		var who, remedies []string
		for _, b := range blockers {
			who, remedies = append(who, b.String()), append(remedies, b.remedy())
		}
		return fmt.Errorf(`%w: the server waits for the end of %s; end it (%s) or wait for it, then run "outbox-cdc init" again`,
			err, strings.Join(who, ", "), strings.Join(remedies, "; "))
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.Code {
		case "53400":
			return exitcode.Errorf(exitcode.Config, "create slot %q: %s; drop one that nobody needs, or raise max_replication_slots and restart the server", slot, pg.Message)
		case "42501":
			return exitcode.Errorf(exitcode.Privilege, "create slot %q: %s; give the login of source.replication_dsn the attribute replication", slot, pg.Message)
		}
	}
	return fmt.Errorf("create slot %q: %w", slot, err)
}

// dropSlot drops the slot. The server refuses it while somebody streams from the slot.
func dropSlot(ctx context.Context, repl *pgconn.PgConn, slot string) error {
	err := pglogrepl.DropReplicationSlot(ctx, repl, slot, pglogrepl.DropReplicationSlotOptions{})
	if err != nil {
		return fmt.Errorf("drop slot %q: %w", slot, err)
	}
	return nil
}

// joinDrop drops the slot that was made before err, and joins the error of that to err.
func joinDrop(ctx context.Context, err error, repl *pgconn.PgConn, slot string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return errors.Join(err, dropSlot(ctx, repl, slot))
}
