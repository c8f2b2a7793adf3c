package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
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
	// Connector is the connector's name, and Processors are its sinks. Setup registers them.
	Connector  string
	Processors []ledger.Processor
	// Backlog says what becomes of the rows that are in the table when the slot is made.
	Backlog Backlog
	// Parked says what becomes of what the ledger still owes to sinks when the slot is made.
	Parked ParkedChoice
	// Timeout bounds two waits, each by itself: the wait for another Setup or Destroy of the same slot, and then the wait of
	// the slot's creation for open transactions. 0 means a minute.
	Timeout time.Duration
	// Waiting is called with the transactions that the slot's creation waits for, every two seconds, from another goroutine.
	// It may be nil.
	Waiting func([]Blocker)
	// WaitingForLock is called with a description of the connection that makes or drops the same slot, if Setup has to wait for its end. It may
	// be nil.
	WaitingForLock func(holder string)

	// step is called with the name of each step that is done. It is for tests.
	step func(name string)
}

// did tells that a step is done.
func (c *SetupConfig) did(step string) {
	if c.step != nil {
		c.step(step)
	}
}

// SetupResult says what Setup has made. What it has not made was there before.
type SetupResult struct {
	PublicationCreated bool
	SlotCreated        bool
	FailoverSet        bool          // a slot that was there is a failover slot now
	ConsistentPoint    pglogrepl.LSN // of a new slot: every transaction that commits from here on is delivered
	Jobs               int           // how many sinks have a job for the rows from before the slot
	Rows               Estimate      // how many rows each job compares
	Discarded          int64         // how many parked events were given up
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
		err = makeSlot(ctx, conn, cfg, newSlot{existing: f, begin: beginFirst, finish: finishFirst}, &result)
	case f.needsFailover(cfg.Source):
		err = setFailover(ctx, cfg, f.slot)
		result.FailoverSet = err == nil
	}
	if f.state == slotReady && cfg.Backlog.Some {
		result.Warnings = append(result.Warnings, fmt.Sprintf("--backlog does nothing: it is about rows from before the slot, and slot %q was there already; "+
			"events that have to be delivered once more: docs/slot.md#again", cfg.Slot))
	}
	if err == nil && f.state == slotReady {
		_, err = cfg.register(ctx, conn, f.checkpoint.Prefix.LSN)
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
	if f.state != slotReady {
		steps = append(steps, cfg.parkedStep(f.owed)...)
		if cfg.Backlog.Some {
			steps = append(steps, jobsStep(cfg, f.rows))
		}
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
	slot        *slotRow           // nil if there is none
	checkpoint  *ledger.Checkpoint // nil if there is none
	rows        Estimate           // rows of the outbox that a job will compare
	walked      Estimate           // rows of the outbox that a job will look at, with those that a condition leaves out
	owed        int                // parked events, counted up to owedLimit
	command     string             // that looks, in messages
}

// needsFailover reports whether the slot that exists has to be made a failover slot.
func (e existing) needsFailover(s Source) bool {
	return s.Failover && e.slot != nil && !e.slot.failover
}

// inspect looks at everything before Setup makes anything. Its error names everything that is wrong.
func inspect(ctx context.Context, conn *pgx.Conn, cfg SetupConfig) (existing, error) {
	f := existing{command: "init"}
	var p problems
	var err error
	if err := f.inspectServer(ctx, conn, cfg, &p); err != nil {
		return f, err
	}
	f.state = judge(cfg.Source, f.server, f.slot, f.checkpoint, &p)
	if f.state != slotReady {
		if err := checkOwed(ctx, conn, cfg, &f, &p); err != nil {
			return f, err
		}
	}
	before := len(p)
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
		if fits && f.state != slotReady && cfg.Backlog.Some {
			if err := checkOrder(ctx, conn, cfg.Source, f.table, &p); err != nil {
				return f, err
			}
		}
		if fits && f.state != slotReady {
			if f.rows, f.walked, err = checkBacklog(ctx, conn, cfg.Source, cfg.Backlog, &p); err != nil {
				return f, err
			}
		}
	}
	if f.state != slotReady && cfg.Backlog.Some && len(cfg.Processors) == 0 {
		p.add(exitcode.Config, "the configuration has no sinks, and a backlog is delivered to the sinks that it has; add them, or write --backlog none")
	}
	return f, p.join()
}

// inspectServer looks at the server, the rights of the logins, the slot and its checkpoint. It adds what is wrong to p. Its own error means
// that the rest cannot be looked at.
func (e *existing) inspectServer(ctx context.Context, conn *pgx.Conn, cfg SetupConfig, p *problems) (err error) {
	if e.server, err = checkServer(ctx, conn, p); err != nil {
		return err
	}
	e.server.Hosts = cfg.Hosts
	checkFailover(cfg.Source, e.server, p)
	err = conn.QueryRow(ctx, "select exists (select from pg_publication where pubname = $1)", cfg.Publication).Scan(&e.publication)
	if err != nil {
		return err
	}
	repl, err := replication.ParseDSN(replication.ReplicationDSNKey, cfg.ReplicationDSN)
	if err != nil {
		*p = append(*p, err)
	} else if err := checkReplicationUser(ctx, conn, repl.User, p); err != nil {
		return err
	}
	before := len(*p)
	if err := checkInitRights(ctx, conn, cfg, *e, p); err != nil || len(*p) > before {
		return errors.Join(err, p.join()) // the login cannot read what is looked at below
	}
	if e.slot, err = readSlot(ctx, conn, cfg.Slot); err != nil {
		return err
	}
	e.checkpoint, err = readCheckpoint(ctx, conn, cfg.Source)
	return err
}

// lockSlot opens a connection for SQL that holds the advisory lock of the slot's name. The lock ends with the connection. It refuses a ledger
// that a later version has changed: what is done under the lock would be done by rules that may have changed.
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
		err = migrations.CheckNewer(ctx, conn, s.LedgerSchema)
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

// register enters the sinks into the ledger, and returns their ids by name. A sink that is new there and has a backlog gets the job for it,
// for a stream that begins at from.
func (c *SetupConfig) register(ctx context.Context, db ledger.Beginner, from pglogrepl.LSN) (map[string]int32, error) {
	processors := slices.Clone(c.Processors)
	for i, p := range processors {
		if p.Backlog != nil {
			job := *p.Backlog
			job.Start = from
			processors[i].Backlog = &job
		}
	}
	return c.ledger().RegisterProcessors(ctx, db, c.Connector, processors)
}
