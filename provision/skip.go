package provision

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// SkipRemedy is the format of the command that passes what the stream cannot pass. It takes the LSN that names it.
const SkipRemedy = `run "outbox-cdc skip --lsn %s"`

// SkipConfig says what Skip passes.
type SkipConfig struct {
	Source
	// DSN is the connection string of a login that may write the ledger and read the outbox, such as the connector's.
	DSN string
	// ReplicationDSN is the connection string of a login with the attribute REPLICATION, on the same server.
	ReplicationDSN string
	// MaxEventBytes is the connector's.
	MaxEventBytes int
	// LSN names what is to be passed, as the connector's message does. It must be what comes next.
	LSN pglogrepl.LSN
	// DryRun says what would be passed, and changes nothing.
	DryRun bool
	// Confirm is asked before anything is changed. Nothing is changed if it returns an error. If it is nil, nobody is asked.
	Confirm func(SkipResult) error
	// WaitingForLock is called with a description of the connection that makes, drops or moves the same slot, if Skip has to wait for its
	// end. It may be nil.
	WaitingForLock func(holder string)

	blind bool                 // nobody can look for the rows
	after func(skipStep) error // a test's: ends Skip after this step
}

// skipStep is a step of Skip after which it may be killed.
type skipStep int

const (
	skipLooked skipStep = iota
	skipMovedCheckpoint
	skipMovedSlot
)

// SkipResult says what Skip has passed, or would pass.
type SkipResult struct {
	Slot string `json:"slot"`
	// LSN is the transaction's commit LSN.
	LSN         string    `json:"lsn"`
	Transaction uint32    `json:"transaction,omitempty"`
	Committed   time.Time `json:"committed,omitzero"`
	// Cause is why it cannot be read.
	Cause string `json:"cause"`
	// Rows are rows of the outbox that the transaction has written, 100 at most, and RowCount is how many there are. RowsUnknown says why
	// nobody could look.
	Rows        []ledger.TransactionRow `json:"rows"`
	RowCount    int                     `json:"row_count"`
	RowsUnknown string                  `json:"rows_unknown,omitempty"`
	// Resumed says that an earlier skip has moved the checkpoint already, and not the slot.
	Resumed bool `json:"resumed"`
	DryRun  bool `json:"dry_run"`
	// MovedTo is where the slot stands now; empty if nothing was changed.
	MovedTo string `json:"moved_to,omitempty"`
}

// skipPatience bounds how long Skip looks for the rows of the transaction.
const skipPatience = 2 * time.Minute

// Skip passes one transaction that the stream cannot pass, because it cannot be decoded. It moves the checkpoint first, and then the slot:
//
//   - Killed before the checkpoint is committed, it has changed nothing.
//   - Killed between the two, it leaves a checkpoint that is ahead of the slot. That is nothing new to a session: PostgreSQL writes the
//     slot's position to disk only now and then. The stream ends at the same place again, the connector or another Skip sees that the
//     checkpoint is past it, and moves the slot.
//   - The other order would leave a slot that is ahead of the checkpoint, as if somebody else had moved it: what the slot has passed might
//     be more than a person has agreed to.
//
// Everything before the transaction, and what could be read of it, must be settled. So all that is lost is what a person has agreed to.
func Skip(ctx context.Context, cfg SkipConfig) (SkipResult, error) {
	conn, err := lockSlot(ctx, cfg.Source, cfg.DSN, advisory.Wait{Tell: cfg.WaitingForLock})
	if err != nil {
		return SkipResult{}, err
	}
	defer closeConn(ctx, conn)
	result, err := skipLocked(ctx, conn, cfg)
	return result, advisory.ExplainTableLock(ctx, conn, err)
}

// skipLocked is Skip over a connection that holds the lock of the slot's name.
func skipLocked(ctx context.Context, conn *pgx.Conn, cfg SkipConfig) (SkipResult, error) {
	if err := checkSkippable(ctx, conn, cfg.Source); err != nil {
		return SkipResult{}, err
	}
	o, err := findNamed(ctx, conn, &cfg)
	if err != nil {
		return SkipResult{}, err
	}
	result, err := describe(ctx, conn, &cfg, o)
	if err != nil || cfg.DryRun {
		return result, err
	}
	if !result.Resumed {
		if cfg.Confirm != nil {
			if err := cfg.Confirm(result); err != nil {
				return result, err
			}
		}
		if result.RowsUnknown != "" {
			cfg.blind = true
		}
		if o, err = moveCheckpoint(ctx, conn, &cfg, o); err != nil {
			return result, err
		}
		if err := cfg.step(skipMovedCheckpoint); err != nil {
			return result, err
		}
	}
	if err := AdvanceSlot(ctx, cfg.ReplicationDSN, cfg.Slot, o.to()); err != nil {
		return result, fmt.Errorf("the checkpoint is past %s already, and slot %q is not; run the command again: %w", cfg.LSN, cfg.Slot, err)
	}
	result.MovedTo = o.to().String()
	return result, cfg.step(skipMovedSlot)
}

func (cfg *SkipConfig) step(s skipStep) error {
	if cfg.after == nil {
		return nil
	}
	return cfg.after(s)
}

// checkSkippable returns an error if the slot is not ours to move.
func checkSkippable(ctx context.Context, conn *pgx.Conn, s Source) error {
	var p problems
	srv, err := checkServer(ctx, conn, &p)
	if err != nil {
		return err
	}
	slot, err := readSlot(ctx, conn, s.Slot)
	if err != nil {
		return err
	}
	c, err := readCheckpoint(ctx, conn, s)
	if err != nil {
		return err
	}
	if state := judge(s, srv, slot, c, &p); len(p) == 0 && state != slotReady {
		p.add(exitcode.SlotLost, `slot %q does not exist, or is half made, so there is nothing to skip; run "outbox-cdc init"`, s.Slot)
	}
	return p.join()
}

// findNamed finds what the stream cannot pass, and returns an error if that is not what the caller has named.
func findNamed(ctx context.Context, conn *pgx.Conn, cfg *SkipConfig) (*obstacle, error) {
	o, err := lookAhead(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	if o.lsn != cfg.LSN {
		return nil, fmt.Errorf("what slot %q cannot pass is %s (%w), not %s; nothing was changed; to pass that one, "+SkipRemedy, cfg.Slot, o, o.err, cfg.LSN, o.lsn)
	}
	if o.transaction == 0 {
		return nil, exitcode.Errorf(exitcode.SlotLost, "%s is no transaction that could be passed alone: %w; %s", o.lsn, o.err, StartAnew)
	}
	return o, cfg.step(skipLooked)
}

// String names the obstacle.
func (o *obstacle) String() string {
	if o.transaction == 0 {
		return "at " + o.lsn.String()
	}
	return fmt.Sprintf("transaction %d at %s, committed %s", o.transaction, o.lsn, o.committed.UTC().Format(time.RFC3339))
}

// to is where the slot stands after the obstacle. The end of the commit record is not known, because the stream has ended before it. One
// byte behind its beginning does as well: no other record can begin within it, and PostgreSQL sends only transactions whose commit record
// begins at the slot's position or later.
func (o *obstacle) to() pglogrepl.LSN { return o.lsn + 1 }

// describe says what would be passed.
func describe(ctx context.Context, conn *pgx.Conn, cfg *SkipConfig, o *obstacle) (SkipResult, error) {
	r := SkipResult{
		Slot: cfg.Slot, LSN: o.lsn.String(), Transaction: o.transaction, Committed: o.committed.UTC(), Cause: o.err.Error(), Rows: []ledger.TransactionRow{},
		Resumed: o.lsn < o.seen.Prefix.LSN, DryRun: cfg.DryRun,
	}
	t := cfg.OutboxTable()
	t.Patience = skipPatience
	rows, count, err := cfg.ledger().TransactionRows(ctx, conn, t, o.transaction)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if err != nil {
		r.RowsUnknown = err.Error()
	}
	r.RowCount, r.Rows = count, append(r.Rows, rows...)
	return r, nil
}

// moveCheckpoint moves the checkpoint past the obstacle. A connector may have streamed since the look, while a person was asked. It is not
// past the obstacle, but it may have recorded something. So if the checkpoint has changed, moveCheckpoint looks once more.
func moveCheckpoint(ctx context.Context, conn *pgx.Conn, cfg *SkipConfig, o *obstacle) (*obstacle, error) {
	for try := 0; ; try++ {
		k := ledger.Skip{
			Slot: cfg.Slot, At: checkpoint.Position{LSN: o.lsn, Index: o.next}, To: o.to(), Outbox: cfg.OutboxTable(),
			Why: fmt.Sprintf("passed by outbox-cdc skip --lsn %s: %v", o.lsn, o.err),
		}
		if !cfg.blind {
			k.Transaction = o.transaction
		}
		err := cfg.ledger().Skip(ctx, conn, o.seen, k)
		if err == nil || !errors.Is(err, ledger.ErrCheckpointMoved) || try == 3 {
			return o, err
		}
		if o, err = findNamed(ctx, conn, cfg); err != nil {
			return nil, err
		}
		if o.lsn < o.seen.Prefix.LSN { // another skip was faster
			return o, nil
		}
	}
}

// AdvanceSlot moves a slot forward to an LSN that its checkpoint covers. It does nothing if the slot stands there already, or beyond. If
// somebody streams from the slot it waits for a moment.
func AdvanceSlot(ctx context.Context, replicationDSN, slot string, to pglogrepl.LSN) error {
	repl, err := connectReplication(ctx, replicationDSN)
	if err != nil {
		return err
	}
	defer closeReplication(ctx, repl)
	// The connection takes SQL in the simple protocol only. A slot's name has no quote in it (checkNames).
	sql := fmt.Sprintf("select pg_catalog.pg_replication_slot_advance(slot_name, '%[2]s') from pg_catalog.pg_replication_slots where slot_name = '%[1]s' and confirmed_flush_lsn < '%[2]s'", slot, to)
	for began := time.Now(); ; {
		_, err := repl.Exec(ctx, sql).ReadAll()
		pg, _ := errors.AsType[*pgconn.PgError](err)
		switch {
		case err == nil:
			return nil
		case pg == nil || pg.Code != "55006" || time.Since(began) > slotPatience:
			return fmt.Errorf("move slot %q to %s: %w", slot, to, err)
		}
		if err := wait.For(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// streamsNow is the error of a command that must not run while somebody streams from the slot.
func streamsNow(ctx context.Context, db ledger.Querier, s Source, slot *slotRow) error {
	who := fmt.Sprintf("pid %d", slot.activePID)
	var user, application, address string
	err := db.QueryRow(ctx, `select coalesce(usename, ''), coalesce(application_name, ''), coalesce(host(client_addr), 'local')
		from pg_stat_activity where pid = $1`, slot.activePID).Scan(&user, &application, &address)
	switch {
	case err == nil:
		who += fmt.Sprintf(" (user %q, application %q, address %s)", user, application, address)
	case !errors.Is(err, pgx.ErrNoRows): // without a row the session has just ended, and the pid is all that we know
		return err
	}
	return fmt.Errorf("%w: %s streams from slot %q; stop it first", replication.ErrSlotInUse, who, s.Slot)
}
