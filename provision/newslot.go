package provision

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// newSlot says how a slot is made: for the first time by Setup, or again by Resync.
type newSlot struct {
	existing
	// begin makes the checkpoint say "building".
	begin func(context.Context, *pgx.Conn, SetupConfig) (*ledger.Checkpoint, error)
	// finish does in one transaction what belongs to the new slot beside its position, which is stored after it.
	finish func(context.Context, pgx.Tx, finishing) error
}

// finishing is what newSlot.finish works on.
type finishing struct {
	SetupConfig
	before *ledger.Checkpoint // of the slot that is replaced; its prefix is zero if there was none
	point  pglogrepl.LSN      // of the new slot
	xmax   uint64             // see ledger.NewJob
	rows   Estimate           // see existing
	walked Estimate
	result *SetupResult
}

// makeSlot makes the slot and its checkpoint. If a step fails, it drops the slot again, because a slot that nobody reads makes
// the server keep WAL for ever. The checkpoint is then left in the state "building", and whoever has begun may begin again.
func makeSlot(ctx context.Context, conn *pgx.Conn, cfg SetupConfig, n newSlot, result *SetupResult) (err error) {
	repl, err := connectReplication(ctx, cfg.ReplicationDSN)
	if err != nil {
		return err
	}
	defer closeReplication(ctx, repl)
	sys, err := pglogrepl.IdentifySystem(ctx, repl)
	if err != nil {
		return fmt.Errorf("identify system: %w", err)
	}
	if sys.SystemID != n.server.SystemIdentifier || sys.DBName != n.server.DatabaseName {
		return exitcode.Errorf(exitcode.Config, "the dsn leads to database %q of cluster %s, the one for replication to %q of %s; correct source.replication_dsn",
			n.server.DatabaseName, n.server.SystemIdentifier, sys.DBName, sys.SystemID)
	}
	f := finishing{SetupConfig: cfg, rows: n.rows, walked: n.walked, result: result}
	if f.before, err = n.begin(ctx, conn, cfg); err != nil {
		return err
	}
	cfg.did("building")
	if n.slot != nil {
		cfg.Failover = cfg.Failover || n.slot.failover // "init --failover" may have made it so, without the configuration
		if err := dropSlot(ctx, repl, cfg.Slot); err != nil {
			return err
		}
		cfg.did("dropped")
	}
	var snapshot string
	if f.point, snapshot, err = createSlot(ctx, repl, conn, cfg); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = joinDrop(ctx, err, repl, cfg.Slot)
		}
	}()
	cfg.did("created")
	if !cfg.Backlog.None && !cfg.Backlog.Some {
		if err := checkSnapshot(ctx, conn, cfg.Source, snapshot); err != nil {
			return err
		}
	}
	if f.xmax, err = cfg.ledger().SnapshotXmax(ctx, conn); err != nil {
		return err
	}
	if cfg.Parked == ParkedDiscard {
		if err := cfg.ledger().MakePartitions(ctx, conn); err != nil {
			return fmt.Errorf("make partitions of the log: %w", err)
		}
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := n.finish(ctx, tx, f); err != nil {
			return err
		}
		now := n.server.Identity
		now.Timeline = sys.Timeline
		return cfg.ledger().SetReady(ctx, tx, cfg.Slot, now, f.point)
	})
	if err != nil {
		return err
	}
	result.SlotCreated, result.ConsistentPoint = true, f.point
	cfg.did("ready")
	return nil
}

// checkSnapshot refuses if the outbox holds rows that the slot will not send. The slot's snapshot shows exactly what has
// committed before its consistent point. inspect has looked before and found no row, but others may have written some while
// the slot was made.
func checkSnapshot(ctx context.Context, conn *pgx.Conn, s Source, snapshot string) error {
	filled := false
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, "set transaction snapshot "+quoteLiteral(snapshot)); err != nil {
			return fmt.Errorf("take the snapshot of slot %q: %w", s.Slot, err)
		}
		filled, err = holdsRows(ctx, tx, s)
		return err
	})
	if err != nil || !filled {
		return err
	}
	rows, err := estimateRows(ctx, conn, s, ledger.JobFilter{})
	if err != nil {
		return err
	}
	return backlogProblem(s, rows)
}

// beginFirst is newSlot.begin of a slot that never was.
func beginFirst(ctx context.Context, conn *pgx.Conn, cfg SetupConfig) (*ledger.Checkpoint, error) {
	return &ledger.Checkpoint{}, cfg.ledger().BeginCheckpoint(ctx, conn, cfg.Slot)
}

// finishFirst is newSlot.finish of a slot that never was.
func finishFirst(ctx context.Context, tx pgx.Tx, f finishing) error {
	f.Processors = slices.Clone(f.Processors)
	for i := range f.Processors { // of the rows before the slot there are none, or jobs deliver them, or nobody wants them
		f.Processors[i].FromStart, f.Processors[i].Backlog = !f.Backlog.None, nil
	}
	ids, err := f.register(ctx, tx, f.point)
	if err != nil {
		return err
	}
	all := idsOf(ids)
	if err := f.settleParked(ctx, tx); err != nil {
		return err
	}
	switch {
	case f.Backlog.None:
		return f.leaveOut(ctx, tx, all)
	case f.Backlog.Some:
		if err := f.ledger().OweSince(ctx, tx, all, f.Backlog.Since); err != nil {
			return err
		}
		return f.fileJobs(ctx, tx, ledger.JobOfInit, all)
	}
	return nil
}

// leaveOut makes what the new slot does not send undelivered for these sinks.
func (f *finishing) leaveOut(ctx context.Context, tx pgx.Tx, processors []int32) error {
	if err := f.ledger().OweFromNow(ctx, tx, processors); err != nil {
		return err
	}
	return f.ledger().EndJobs(ctx, tx, processors)
}

// fileJobs files a job for each of these sinks.
func (f *finishing) fileJobs(ctx context.Context, tx pgx.Tx, reason ledger.JobReason, processors []int32) error {
	var jobs []ledger.NewJob
	for _, id := range processors {
		jobs = append(jobs, ledger.NewJob{
			Processor: id, Reason: reason, Base: f.before.Prefix, Start: f.point, SnapshotXmax: f.xmax, Filter: f.Backlog.filter(), Estimate: f.walked.Rows,
		})
	}
	f.result.Jobs, f.result.Rows = len(jobs), f.rows
	return f.ledger().FileJobs(ctx, tx, jobs)
}

// settleParked does what Parked asks for. What the ledger goes on to owe must not stand at positions that the new slot has yet to send.
func (f *finishing) settleParked(ctx context.Context, tx pgx.Tx) error {
	s := f.ledger()
	if f.Parked == ParkedDiscard {
		n, err := s.DiscardOwed(ctx, tx, f.Slot, "given up when the replication slot was made (--parked discard)")
		if err != nil {
			return err
		}
		f.result.Discarded = n
	}
	beyond, err := s.HoldsRowsBeyond(ctx, tx, f.point)
	if err != nil || !beyond {
		return err
	}
	return s.Renumber(ctx, tx, f.before.Prefix)
}

func idsOf(ids map[string]int32) []int32 {
	return slices.Sorted(maps.Values(ids))
}

// ParkedChoice says what becomes of what the ledger still owes to sinks (parked rows), when a slot is made. The zero value refuses if that
// is a question.
type ParkedChoice string

// The choices.
const (
	ParkedKeep    ParkedChoice = "keep"    // it is delivered
	ParkedDiscard ParkedChoice = "discard" // it is given up, with a row in the log for each
)

// owedLimit is up to which number owed events are counted for a message.
const owedLimit = 100_000

// owedText says how many owed events there are.
func owedText(n int) string {
	switch {
	case n >= owedLimit:
		return fmt.Sprintf("%d parked events or more", owedLimit)
	case n == 1:
		return "1 parked event"
	}
	return fmt.Sprintf("%d parked events", n)
}

// checkOwed counts what the ledger still owes. If a slot is to be made where there was none before, or on another server, and nobody has
// said what becomes of that, it adds a problem: in a copy of a database the original owes the same, and will deliver it.
func checkOwed(ctx context.Context, conn *pgx.Conn, cfg SetupConfig, f *existing, p *problems) (err error) {
	if f.checkpoint == nil {
		var exists bool
		err := conn.QueryRow(ctx, "select to_regclass($1) is not null", pgx.Identifier{cfg.LedgerSchema, "outbox_parked"}.Sanitize()).Scan(&exists)
		if err != nil || !exists {
			return err
		}
	}
	if f.owed, err = cfg.ledger().CountOwed(ctx, conn, owedLimit); err != nil {
		return err
	}
	if f.owed > 0 && cfg.Parked == "" {
		p.add(exitcode.Config, "the ledger in schema %q still owes %s to sinks; say what becomes of that: --parked keep delivers it, --parked discard gives it up "+
			"(for a copy of a database, whose original delivers it)", cfg.LedgerSchema, owedText(f.owed))
	}
	return nil
}

// parkedStep says in words what settleParked will do.
func (c *SetupConfig) parkedStep(owed int) []string {
	if owed == 0 || c.Parked != ParkedDiscard {
		return nil
	}
	return []string{"give up " + owedText(owed)}
}

// jobsStep says in words which jobs will be filed.
func jobsStep(cfg SetupConfig, rows Estimate) string {
	return fmt.Sprintf("file a job for each of %d sinks, which compares %s of %s with the ledger and delivers what is missing", len(cfg.Processors), rows, cfg.Table)
}
