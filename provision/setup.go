package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// SetupConfig says what Setup makes. The migrations have made the tables before.
type SetupConfig struct {
	Source
	// DSN is the connection string of a login that may create the publication. If the publication exists, any login that may
	// write the ledger will do.
	DSN string
	// ReplicationDSN is the connection string of a login with the attribute REPLICATION, on the same server.
	ReplicationDSN string
	// MakesTables says that the login of DSN is going to run migrations before Setup, so it needs the rights for that.
	MakesTables bool
	// SkipBacklog leaves the rows undelivered that are in the table when the slot is made. Without it, Setup refuses a table
	// that holds rows.
	SkipBacklog bool
	// Timeout bounds two waits, each by itself: the wait for another Setup or Destroy of the same slot, and then the wait of
	// the slot's creation for open transactions. 0 means a minute.
	Timeout time.Duration
	// Waiting is called with the transactions that the slot's creation waits for, every two seconds, from another goroutine.
	// It may be nil.
	Waiting func([]Blocker)
	// WaitingForLock is called with a description of the connection that makes or drops the same slot, if Setup has to wait for its end. It may
	// be nil.
	WaitingForLock func(holder string)
}

// SetupResult says what Setup has made. What it has not made was there before.
type SetupResult struct {
	PublicationCreated bool
	SlotCreated        bool
	FailoverSet        bool          // a slot that was there is a failover slot now
	ConsistentPoint    pglogrepl.LSN // of a new slot: every transaction that commits from here on is delivered
	Warnings           []string      // about what is no reason to refuse
}

// Setup makes the publication, then the checkpoint, then the slot. This order matters for two reasons:
//
//   - PostgreSQL cannot decode WAL with a publication that did not exist when the WAL was written.
//   - The checkpoint says "building" before there is a slot. So, after a crash, the next Setup can tell a slot that was left
//     half made from one that somebody else has made.
//
// Setup makes only what is missing, so it may be called again. Several processes may call it at once: an advisory lock on the
// slot's name lets in one after the other.
func Setup(ctx context.Context, cfg SetupConfig) (SetupResult, error) {
	conn, err := lockSlot(ctx, cfg.Source, cfg.DSN, advisory.Wait{Timeout: cfg.Timeout, Tell: cfg.WaitingForLock})
	if err != nil {
		return SetupResult{}, err
	}
	defer closeConn(ctx, conn)
	result, err := setUpLocked(ctx, conn, cfg)
	return result, advisory.ExplainTableLock(ctx, conn, err)
}

// setUpLocked is Setup over a connection that holds the lock of the slot's name.
func setUpLocked(ctx context.Context, conn *pgx.Conn, cfg SetupConfig) (SetupResult, error) {
	var result SetupResult
	f, err := inspect(ctx, conn, cfg)
	if err != nil {
		return result, err
	}
	if f.table == nil {
		return result, TableMissing(cfg.Source)
	}
	if result.Warnings, err = encodingWarnings(ctx, conn); err != nil {
		return result, err
	}
	if !f.publication {
		if err := createPublication(ctx, conn, cfg.Source); err != nil {
			return result, err
		}
		result.PublicationCreated = true
		if _, err := CheckDrift(ctx, conn, cfg.Source, f.table.OID); err != nil {
			return result, err
		}
	}
	switch {
	case f.state != slotReady:
		result.ConsistentPoint, err = makeSlot(ctx, conn, cfg, f)
		result.SlotCreated = err == nil
	case f.needsFailover(cfg.Source):
		err = setFailover(ctx, cfg, f.slot)
		result.FailoverSet = err == nil
	}
	if err != nil {
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

// Plan lists what Setup would do, and changes nothing. The tables need not exist yet.
func Plan(ctx context.Context, cfg SetupConfig) ([]string, error) {
	var f existing
	err := WithConn(ctx, cfg.DSN, cfg.Source, func(conn *pgx.Conn) (err error) {
		f, err = inspect(ctx, conn, cfg)
		return err
	})
	if err != nil {
		return nil, err
	}
	var steps []string
	if !f.publication {
		steps = append(steps, publicationSQL(cfg.Source))
	}
	switch f.state {
	case slotHalf:
		steps = append(steps, fmt.Sprintf("drop replication slot %s, which an earlier init left half made", cfg.Slot),
			createStep(cfg.Source))
	case slotAbsent:
		steps = append(steps, createStep(cfg.Source))
	}
	if f.state == slotReady && f.needsFailover(cfg.Source) {
		steps = append(steps, fmt.Sprintf("make replication slot %s a failover slot", cfg.Slot))
	}
	return steps, nil
}

// createStep says in a plan that the slot is created.
func createStep(s Source) string {
	kind := outputPlugin
	if s.Failover {
		kind += ", failover"
	}
	return fmt.Sprintf("create logical replication slot %s (%s) and its checkpoint", s.Slot, kind)
}

// existing is what inspect has found: what is there before Setup makes anything.
type existing struct {
	server      server
	table       *Table // nil if it does not exist
	publication bool
	state       slotState
	slot        *slotRow // nil if there is none
}

// needsFailover reports whether the slot that exists has to be made a failover slot.
func (e existing) needsFailover(s Source) bool {
	return s.Failover && e.slot != nil && !e.slot.failover
}

// inspect looks at everything before Setup makes anything. Its error names everything that is wrong.
func inspect(ctx context.Context, conn *pgx.Conn, cfg SetupConfig) (existing, error) {
	var f existing
	var p problems
	var err error
	if f.server, err = checkServer(ctx, conn, &p); err != nil {
		return f, err
	}
	f.server.Hosts = cfg.Hosts
	checkFailover(cfg.Source, f.server, &p)
	err = conn.QueryRow(ctx, "select exists (select from pg_publication where pubname = $1)", cfg.Publication).Scan(&f.publication)
	if err != nil {
		return f, err
	}
	repl, err := replication.ParseDSN(replication.ReplicationDSNKey, cfg.ReplicationDSN)
	if err != nil {
		p = append(p, err)
	} else if err := checkReplicationUser(ctx, conn, repl.User, &p); err != nil {
		return f, err
	}
	before := len(p)
	if err := checkInitRights(ctx, conn, cfg, f, &p); err != nil || len(p) > before {
		return f, errors.Join(err, p.join()) // the login cannot read what is looked at below
	}
	slot, err := readSlot(ctx, conn, cfg.Slot)
	if err != nil {
		return f, err
	}
	c, err := readCheckpoint(ctx, conn, cfg.Source)
	if err != nil {
		return f, err
	}
	f.slot = slot
	f.state = judge(cfg.Source, f.server, slot, c, &p)
	before = len(p)
	// A table that does not exist is no mistake here: Plan may be asked before the migrations have run.
	if f.table, err = checkNamedTable(ctx, conn, cfg.Source, &p); err != nil {
		return f, err
	}
	fits := len(p) == before // if not, reading the table may fail, for example because a partition is a foreign table
	if f.table != nil {
		if f.publication {
			if err := checkPublication(ctx, conn, cfg.Source, f.table, &p); err != nil {
				return f, err
			}
		} else if len(f.table.generated) > 0 {
			p.add(exitcode.Config, "columns of %s are generated, and a publication leaves such columns out by default: %s; create it yourself, and run init again: "+
				"%s: see docs/table.md#generated", cfg.Table, strings.Join(f.table.generated, ", "), generatedPublicationSQL(cfg.Source))
		}
		if fits && f.state != slotReady && !cfg.SkipBacklog {
			filled, err := holdsRows(ctx, conn, cfg.Source)
			if err != nil {
				return f, err
			}
			if filled {
				p = append(p, backlogProblem(cfg.Source))
			}
		}
	}
	return f, p.join()
}

// holdsRows reports whether the outbox holds a row. It reads one row at most.
func holdsRows(ctx context.Context, db ledger.Querier, s Source) (bool, error) {
	var filled bool
	if err := db.QueryRow(ctx, "select exists (select from "+s.table()+")").Scan(&filled); err != nil {
		return false, fmt.Errorf("look for rows in %s: %w", s.Table, err)
	}
	return filled, nil
}

// backlogProblem is the error for a table with rows that were written before the slot.
func backlogProblem(s Source) error {
	return exitcode.Errorf(exitcode.Config, "table %s holds rows from before the slot, which the stream never carries; "+
		`run "outbox-cdc init --backlog none" to leave them undelivered, or empty the table`, s.Table)
}

// lockSlot opens a connection for SQL that holds the advisory lock of the slot's name. The lock ends with the connection.
func lockSlot(ctx context.Context, s Source, text string, w advisory.Wait) (*pgx.Conn, error) {
	if err := s.checkNames(); err != nil {
		return nil, err
	}
	conn, err := connect(ctx, text)
	if err != nil {
		return nil, err
	}
	var key int64
	err = conn.QueryRow(ctx, "select hashtextextended('outbox-cdc slot ' || $1, 0)", s.Slot).Scan(&key)
	if err == nil {
		err = advisory.Lock(ctx, conn, key, fmt.Sprintf("slot %q", s.Slot), w)
	}
	if err == nil {
		err = advisory.LimitTableLocks(ctx, conn, w.Timeout)
	}
	if err != nil {
		closeConn(ctx, conn)
		return nil, err
	}
	return conn, nil
}

// makeSlot makes the slot and its checkpoint. If a step fails, it drops the slot again, because a slot that nobody reads makes
// the server keep WAL for ever. The checkpoint may be left in the state "building"; the next Setup then begins again.
func makeSlot(ctx context.Context, conn *pgx.Conn, cfg SetupConfig, f existing) (_ pglogrepl.LSN, err error) {
	if err := cfg.ledger().BeginCheckpoint(ctx, conn, cfg.Slot); err != nil {
		return 0, err
	}
	repl, err := connectReplication(ctx, cfg.ReplicationDSN)
	if err != nil {
		return 0, err
	}
	defer closeReplication(ctx, repl)
	sys, err := pglogrepl.IdentifySystem(ctx, repl)
	if err != nil {
		return 0, fmt.Errorf("identify system: %w", err)
	}
	if sys.SystemID != f.server.SystemIdentifier || sys.DBName != f.server.DatabaseName {
		return 0, exitcode.Errorf(exitcode.Config, "the dsn leads to database %q of cluster %s, the one for replication to %q of %s; correct source.replication_dsn",
			f.server.DatabaseName, f.server.SystemIdentifier, sys.DBName, sys.SystemID)
	}
	if f.state == slotHalf {
		if err := dropSlot(ctx, repl, cfg.Slot); err != nil {
			return 0, err
		}
	}
	point, snapshot, err := createSlot(ctx, repl, conn, cfg)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = joinDrop(ctx, err, repl, cfg.Slot)
		}
	}()
	if !cfg.SkipBacklog {
		if err := checkSnapshot(ctx, conn, cfg.Source, snapshot); err != nil {
			return 0, err
		}
	}
	now := f.server.Identity
	now.Timeline = sys.Timeline
	return point, setReady(ctx, conn, cfg.Source, now, point)
}

// checkSnapshot refuses if the outbox holds rows that the slot will not send. The slot's snapshot shows exactly what has
// committed before its consistent point. inspect has looked before and found no row, but others may have written some while
// the slot was made.
func checkSnapshot(ctx context.Context, conn *pgx.Conn, s Source, snapshot string) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set transaction snapshot "+quoteLiteral(snapshot)); err != nil {
			return fmt.Errorf("take the snapshot of slot %q: %w", s.Slot, err)
		}
		filled, err := holdsRows(ctx, tx, s)
		if err == nil && filled {
			return backlogProblem(s)
		}
		return err
	})
}
