package connector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// database is PostgreSQL as a connector needs it: *postgres, or a test's. Its parts are defined where they are used.
type database interface {
	sessionDatabase
	keeperDatabase
	countsDatabase
	cleanupDatabase
	accountsDatabase
	resultsDatabase
	// preflight looks whether everything that a session needs is in place. It only reads.
	preflight(ctx context.Context) (provision.Facts, error)
	// publicationExists reports whether there is a publication with the configured name.
	publicationExists(ctx context.Context) (bool, error)
	// advanceSlot moves the slot forward to an LSN that the checkpoint covers.
	advanceSlot(ctx context.Context, to pglogrepl.LSN) error
	// appear makes sure that this process has a connection, by which others can see that it is there.
	appear(ctx context.Context) error
	// reset closes the connections that are open. Others are made when they are needed.
	reset()
	close()
}

// postgres is the real database. Everything but recorder, lease, listener and stream goes over its pool.
type postgres struct {
	ledger.Schema
	source    Source
	retention cleanup.Retention
	logins    *logins
	connector string // the connector's name
	process   ledger.Process
	pool      *pgxpool.Pool
}

// openPostgres makes the pool. It connects to nothing yet.
func openPostgres(connector string, source Source) (*postgres, error) {
	p := &postgres{
		Schema: ledger.Schema(source.LedgerSchema), source: source, logins: newLogins(source), connector: connector, process: ledger.ThisProcess(source.Slot),
	}
	conn, err := p.sqlConfig()
	if err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(source.DSN)
	if err != nil {
		return nil, exitcode.Errorf(exitcode.Config, "source.dsn is no connection string for a pool")
	}
	cfg.ConnConfig = conn
	cfg.MinConns = 0
	// The pool keeps what it was made with. Each connection has to take the present password, and to read the certificates anew, as the
	// connections of recorder and listener do.
	cfg.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error {
		fresh, err := p.sqlConfig()
		if err == nil {
			*conn = *fresh
		}
		return err
	}
	// As long as the pool has a connection, others see that this process is there. It always has one: a process that streams asks for the lag
	// every 2 s, and one that stands by looks every second whether it may begin.
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error { return p.Appear(ctx, conn, source.Slot) }
	// The recorder, the lease and the listener have a connection each outside of the pool.
	cfg.MaxConns = int32(max(1, source.MaxConnections-3))
	// The pool is not bound to the context of Run: that one ends before the drain, which still needs connections.
	p.pool, err = pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("open the connection pool: %w", err)
	}
	return p, nil
}

func (p *postgres) appear(ctx context.Context) error { return p.pool.Ping(ctx) }

func (p *postgres) reset() { p.pool.Reset() }

func (p *postgres) close() { p.pool.Close() }

// connect opens an SQL connection outside of the pool. The caller closes it.
func (p *postgres) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := p.sqlConfig()
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// sqlConfig returns the settings of every SQL connection of the connector.
func (p *postgres) sqlConfig() (*pgx.ConnConfig, error) {
	cfg, err := replication.SQLConfig(replication.SourceDSNKey, p.logins.sql())
	if err != nil {
		return nil, err
	}
	ledger.PinRun(&cfg.Config, p.process.ApplicationName())
	return cfg, nil
}

// refusedConnection is the error of a connection that could not be made, with the configuration key of its connection string. See
// Connector.explainRefusal.
type refusedConnection struct {
	key string
	err error
}

func (e *refusedConnection) Error() string { return e.err.Error() }
func (e *refusedConnection) Unwrap() error { return e.err }

func (p *postgres) preflight(ctx context.Context) (provision.Facts, error) {
	cfg := provision.PreflightConfig{Source: p.cleanupSource()}
	rc, err := replication.ParseDSN(replication.ReplicationDSNKey, p.logins.replication())
	if err != nil {
		return provision.Facts{}, err
	}
	cfg.ReplicationUser = rc.User
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return provision.Facts{}, &refusedConnection{replication.SourceDSNKey, err}
	}
	defer conn.Release()
	if err := replication.CheckDirect(ctx, replication.SourceDSNKey, conn.Conn().PgConn(), conn.Conn().Config().RuntimeParams); err != nil {
		return provision.Facts{}, err
	}
	return provision.Preflight(ctx, conn, cfg)
}

func (p *postgres) openStream(ctx context.Context) (sessionStream, replication.Identity, error) {
	s, id, err := replication.Open(ctx, replication.StreamConfig{
		DSN: p.logins.replication(), Slot: p.source.Slot, Publication: p.source.Publication, ApplicationName: p.process.ApplicationName(),
	})
	if err != nil {
		return nil, id, &refusedConnection{replication.ReplicationDSNKey, err}
	}
	return s, id, nil
}

func (p *postgres) takeOver(ctx context.Context, changed func([]ledger.RowChange)) (checkpoint.Ledger, ledger.Start, error) {
	host, _ := os.Hostname() // Owner is for people only: without a host name it has the pid
	w, start, err := ledger.Open(ctx, ledger.Config{
		Schema: p.Schema, Slot: p.source.Slot, Owner: fmt.Sprintf("%s pid %d", host, os.Getpid()), Connect: p.connect, Changed: changed,
	})
	if err != nil {
		return nil, start, err
	}
	return w, start, nil
}

func (p *postgres) slotPosition(ctx context.Context) (confirmed, written pglogrepl.LSN, err error) {
	err = p.pool.QueryRow(ctx, "select confirmed_flush_lsn, pg_current_wal_insert_lsn() from pg_replication_slots where slot_name = $1", p.source.Slot).
		Scan(&confirmed, &written)
	if err != nil {
		return 0, 0, fmt.Errorf("ask where slot %q stands: %w", p.source.Slot, err)
	}
	return confirmed, written, nil
}

// errOrphans ends the transaction of registerProcessors.
var errOrphans = errors.New("there are orphans")

func (p *postgres) registerProcessors(ctx context.Context, all []ledger.Processor, known []string) (ids map[string]int32, orphans map[string]int64, err error) {
	err = pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) (err error) {
		if ids, err = p.RegisterProcessors(ctx, tx, p.connector, all); err != nil {
			return err
		}
		if orphans, err = p.Orphans(ctx, tx, p.connector, known); err == nil && len(orphans) > 0 {
			return errOrphans
		}
		return err
	})
	if errors.Is(err, errOrphans) {
		return nil, orphans, nil
	}
	return ids, nil, err
}

func (p *postgres) reviseParked(ctx context.Context, processors []int32, policy ledger.ParkedPolicy) error {
	return p.ReviseParked(ctx, p.pool, processors, policy)
}

func (p *postgres) activity(ctx context.Context, processors []int32) (map[int32]ledger.Activity, error) {
	return p.ReadActivity(ctx, p.pool, processors)
}

func (p *postgres) parkedRows(processor int32, lane, lanes int) parkedReader {
	return p.NewParkedReader(p.pool, processor, lane, lanes)
}

func (p *postgres) continueAt(ctx context.Context, epoch int32, c ledger.Continuation) error {
	return p.Continue(ctx, p.pool, p.source.Slot, epoch, c)
}

func (p *postgres) leave(ctx context.Context, d ledger.Departure) error {
	return p.Leave(ctx, p.pool, p.source.Slot, d)
}

func (p *postgres) listen(ctx context.Context) (listener, error) {
	conn, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	l := pgListener{conn, p.Schema}
	if err := ledger.ListenChanged(ctx, conn); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (p *postgres) openLease(ctx context.Context) (leaseConnection, error) {
	conn, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	return pgLease{conn, p}, nil
}

// pgLease is the connection of the lease.
type pgLease struct {
	*pgx.Conn
	p *postgres
}

func (l pgLease) epoch(ctx context.Context) (int32, error) {
	return l.p.ReadEpoch(ctx, l.Conn, l.p.source.Slot)
}

func (l pgLease) close() { closeReader(l.Conn) }

// closeReader closes a connection that has only read, so that nothing depends on how it is closed.
func closeReader(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// pgListener is a connection with LISTEN.
type pgListener struct {
	*pgx.Conn
	schema ledger.Schema
}

func (l pgListener) close() { closeReader(l.Conn) }

func (l pgListener) activity(ctx context.Context, processors []int32) (map[int32]ledger.Activity, error) {
	return l.schema.ReadActivity(ctx, l.Conn, processors)
}

func (p *postgres) countParked(ctx context.Context, processors []int32) (ledger.ParkedCounts, error) {
	return p.CountParked(ctx, p.pool, p.source.Slot, processors)
}

func (p *postgres) oldestParked(ctx context.Context, q ledger.OldestQuery) (ledger.OldestParked, error) {
	return p.ReadOldest(ctx, p.pool, q)
}

func (p *postgres) makePartitions(ctx context.Context) error {
	err := p.MakePartitions(ctx, p.pool)
	if p.source.provision().Mapped() {
		return err // the table is its owner's, and so are its partitions
	}
	return errors.Join(err, p.KeepOutboxPartitions(ctx, p.pool))
}

func (p *postgres) heartbeat(ctx context.Context, beats []ledger.Heartbeat) error {
	return p.WriteHeartbeat(ctx, p.pool, p.connector, beats)
}

func (p *postgres) writeSinkState(ctx context.Context, processor int32, st ledger.SinkState) error {
	return p.WriteSinkState(ctx, p.pool, processor, st)
}

func (p *postgres) slotView(ctx context.Context) (v slotView, err error) {
	err = p.pool.QueryRow(ctx, `select written, coalesce(active_pid, 0), reply_time,
			greatest(pg_wal_lsn_diff(written, restart_lsn), 0)::bigint, coalesce(wal_status, ''), safe_wal_size,
			case wait_event when 'WaitForStandbyConfirmation' then coalesce(current_setting('synchronized_standby_slots', true), '') else '' end
		from pg_current_wal_lsn() as written, pg_replication_slots s left join pg_stat_replication r on r.pid = s.active_pid
			left join pg_stat_activity a on a.pid = s.active_pid where slot_name = $1`, p.source.Slot).
		Scan(&v.written, &v.walsender.pid, &v.walsender.reply, &v.slot.RestartLag, &v.slot.WALStatus, &v.slot.SafeWAL, &v.walsender.held)
	if err != nil {
		return v, fmt.Errorf("measure slot lag: %w", err)
	}
	v.slot.AskedAt = time.Now()
	return v, nil
}

func (p *postgres) measure(ctx context.Context, q provision.MeasureQuery) (provision.Measurement, error) {
	q.ApplicationName = p.process.ApplicationName()
	return provision.Measure(ctx, p.pool, p.source.provision(), q)
}

func (p *postgres) checkDrift(ctx context.Context, oid uint32) (moved string, err error) {
	return provision.CheckDrift(ctx, p.pool, p.source.provision(), oid)
}

func (p *postgres) publicationVersion(ctx context.Context, oid uint32) (string, error) {
	return provision.PublicationVersion(ctx, p.pool, p.source.provision(), oid)
}

func (p *postgres) advanceSlot(ctx context.Context, to pglogrepl.LSN) error {
	return provision.AdvanceSlot(ctx, p.logins.replication(), p.source.Slot, to)
}

func (p *postgres) publicationExists(ctx context.Context) (exists bool, err error) {
	err = p.pool.QueryRow(ctx, "select exists (select from pg_publication where pubname = $1)", p.source.Publication).Scan(&exists)
	return exists, err
}

// whyServerWaits reads only PostgreSQL's own views, so that it does not wait for the same thing as the statement that it asks about.
func (p *postgres) whyServerWaits(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	rows, err := p.pool.Query(ctx, `select a.pid, coalesce(a.state, ''), coalesce(a.wait_event_type, ''), coalesce(a.wait_event, ''),
			left(a.query, 60), case when a.wait_event_type = 'Lock' then array_to_string(pg_blocking_pids(a.pid), ', ') else '' end,
			current_setting('synchronous_standby_names')
		from pg_stat_activity a
		where a.application_name in ($1, 'outbox-cdc') and a.backend_type = 'client backend' and a.pid <> pg_backend_pid()
			and a.state <> 'idle' and a.query_start < clock_timestamp() - interval '3 s'
		order by a.query_start limit 1`, p.process.ApplicationName())
	if err != nil {
		return "it does not answer another connection either: " + err.Error()
	}
	defer rows.Close()
	var w backendWait
	for rows.Next() {
		if err := rows.Scan(&w.pid, &w.state, &w.kind, &w.event, &w.query, &w.blockers, &w.standbys); err != nil {
			return err.Error()
		}
	}
	if err := rows.Err(); err != nil {
		return "it does not answer another connection either: " + err.Error()
	}
	return w.String()
}
