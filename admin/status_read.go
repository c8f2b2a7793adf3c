package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// StatusConfig says what ReadStatus reads, and whom it asks.
type StatusConfig struct {
	Config
	// DSNPlace is where the DSN was configured.
	DSNPlace string
	// MaxInFlight is delivery.max_in_flight.
	MaxInFlight int
	// Listen is http.listen, or empty if that is off.
	Listen string
	// Retention is what is configured.
	Retention cleanup.Retention
}

const (
	// connectPatience is how long ReadStatus tries to connect to a server that does not answer.
	connectPatience = 3 * time.Second
	// readPatience is how long it reads.
	readPatience = 10 * time.Second
	// lockPatience is how long it waits for the lock of a table. Somebody looks at the screen, and the next one comes in 2 s.
	lockPatience = 500 * time.Millisecond
)

// statusReader collects what is known. Each step that fails adds why to status.Unknown, and the others go on.
type statusReader struct {
	cfg    StatusConfig
	status *Status
	server provision.ServerOverview
	ledger ledger.Overview
	// readable has the tables of the ledger that the login may read.
	readable map[string]bool
	// found are the instances that are connected to the database.
	found []ledger.Instance
	// faults are what a session of the connector would end with.
	faults []error
	// ails are the parts of the instance that streams that are not well, as it says.
	ails []ailing
}

// ReadStatus says how a connector does. The error says why the database could not be read; the status then says what else is known.
func ReadStatus(ctx context.Context, c StatusConfig) (Status, error) {
	s := Status{
		At: time.Now().UTC(), Connector: c.Name, Level: monitoring.LevelOK,
		Instances: []StatusInstance{}, Sinks: []StatusSink{}, Holders: []StatusHolder{}, ToDo: []StatusToDo{}, Unknown: []string{},
	}
	target, err := dsn.TargetOf(c.DSN, c.DSNPlace)
	if err != nil {
		return s, err
	}
	s.Database = StatusDatabase{Address: target.Address, Name: target.Database, User: target.User, Configured: target.Configured}
	r := &statusReader{cfg: c, status: &s}
	err = r.readDatabase(ctx)
	if err != nil {
		s.Database.Error = err.Error()
	}
	r.askInstances(ctx)
	r.judge()
	return s, err
}

// readDatabase reads all that the database says.
func (r *statusReader) readDatabase(ctx context.Context) error {
	connecting, stop := context.WithTimeoutCause(ctx, connectPatience, fmt.Errorf("no answer for %s", connectPatience))
	defer stop()
	err := provision.WithConn(connecting, r.cfg.DSN, r.cfg.Source, func(conn *pgx.Conn) error {
		reading, stop := context.WithTimeoutCause(ctx, readPatience, fmt.Errorf("not done after %s", readPatience))
		defer stop()
		return r.read(reading, conn)
	})
	return ledgerError(replication.ExplainUnreachable(err))
}

func (r *statusReader) read(ctx context.Context, conn *pgx.Conn) error {
	if err := ledger.SetUpCommand(ctx, conn); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, fmt.Sprintf("set lock_timeout = %d", lockPatience.Milliseconds()))
	if err != nil {
		return err
	}
	if r.server, err = provision.ReadOverview(ctx, conn, r.cfg.Source); err != nil {
		return err
	}
	r.status.At = r.server.Now.UTC()
	r.status.Database.Version, r.status.Database.Standby = r.server.Version, r.server.InRecovery
	// Nothing of the ledger is read before it is known that it belongs to trusted roles: see ledgerConn.open.
	if err := provision.CheckOwners(ctx, conn, r.cfg.Source); err != nil {
		r.faults = append(r.faults, err)
		r.showSlot()
		return nil
	}
	r.readable = r.server.Readable(r.cfg.Source)
	hasLedger := r.readable["outbox_checkpoints"]
	r.ledger, err = ledger.Schema(r.cfg.Source.LedgerSchema).ReadOverview(ctx, conn, ledger.OverviewQuery{
		Slot: r.cfg.Source.Slot, Connector: r.cfg.Name, Window: r.cfg.MaxInFlight, Readable: r.readable, HasState: r.server.HasState,
	})
	if err != nil {
		r.unknown("the ledger", err)
		clear(r.readable) // nothing is concluded from what was not read
	}
	if r.ledger.Unread != nil {
		r.unknown("what waits, and dead letters", r.ledger.Unread)
		delete(r.readable, "outbox_parked")
	}
	if hasLedger {
		if r.found, err = ledger.Schema(r.cfg.Source.LedgerSchema).Instances(ctx, conn, r.cfg.Source.Slot); err != nil {
			r.unknown("the instances", err)
		}
	}
	r.showPending()
	r.showSlot()
	if r.status.Slot.State == SlotBuilding { // who has the slot is an init
		r.found = slices.DeleteFunc(r.found, func(i ledger.Instance) bool { return i.PID == 0 })
	}
	r.showSinks()
	r.showCleanup()
	r.showSizes(ctx, conn)
	r.showHolders()
	r.findFaults(ctx, conn)
	return nil
}

// unknown notes that something could not be read.
func (r *statusReader) unknown(what string, err error) {
	if advisory.LockTimeout(err) {
		err = errors.New("another session holds a lock on it")
	}
	r.status.Unknown = append(r.status.Unknown, fmt.Sprintf("%s: %v", what, err))
}

// findFaults looks for what keeps a session of the connector from streaming. A standby of PostgreSQL has none of it.
func (r *statusReader) findFaults(ctx context.Context, conn *pgx.Conn) {
	if r.server.InRecovery {
		return
	}
	facts, err := provision.Preflight(ctx, conn, provision.PreflightConfig{Source: r.cfg.Source})
	if facts.Newer != nil {
		r.faults = append(r.faults, facts.Newer)
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		r.faults = append(r.faults, joined.Unwrap()...)
	} else if advisory.LockTimeout(err) {
		r.unknown("whether a connector could stream", err)
	} else if err != nil {
		r.faults = append(r.faults, err)
	}
}

// showSlot says what the slot is.
func (r *statusReader) showSlot() {
	slot, c := r.server.Slot, r.ledger.Checkpoint
	s := &StatusSlot{Name: r.cfg.Source.Slot}
	r.status.Slot = s
	if c != nil {
		s.Epoch, s.RecordedAt = c.Epoch, utcOrNil(r.ledger.RecordedAt)
	}
	if slot != nil {
		s.ActivePID, s.ActiveFrom, s.WALStatus, s.Invalidated, s.InactiveSince = slot.ActivePID, slot.ClientAddress, slot.WALStatus, slot.Invalidated, slot.InactiveSince
		if slot.SafeWALSize != nil {
			s.LostAfterBytes = new(max(0, *slot.SafeWALSize))
		}
		if slot.ConfirmedFlush > 0 {
			s.Confirmed = slot.ConfirmedFlush.String()
			s.LagBytes = new(max(0, int64(r.server.Written)-int64(slot.ConfirmedFlush)))
		}
		if slot.RestartLSN > 0 {
			s.KeptBytes = new(max(0, int64(r.server.Written)-int64(slot.RestartLSN)))
		}
		if r.server.SlotLimit >= 0 {
			s.KeptLimit = &r.server.SlotLimit
		}
	}
	switch building := c != nil && c.State == ledger.Building; {
	case r.server.InRecovery && (slot == nil || slot.ActivePID == 0):
		s.State = SlotUnseen
	case slot == nil && c != nil && !building:
		s.State = SlotMissing
	case slot == nil:
		s.State = SlotAbsent
	case slot.Plugin != "pgoutput" || slot.Database != r.server.Database || c == nil && r.readable["outbox_checkpoints"]:
		s.State = SlotForeign
	case slot.Invalidated != "":
		s.State = SlotLost
	case building:
		s.State = SlotBuilding
	case slot.ActivePID != 0:
		s.State = SlotStreams
	default:
		s.State = SlotIdle
	}
}

// showSinks says of each sink what the database knows.
func (r *statusReader) showSinks() {
	rows := func(p ledger.ParkedOverview) (rows StatusRows) {
		if !r.readable["outbox_parked"] {
			return rows
		}
		rows = StatusRows{Parked: new(p.Parked), Dead: new(p.Dead), AtLeast: p.More, OldestAtLeast: p.OldestMayBeOlder}
		if !p.Oldest.IsZero() {
			rows.OldestSeconds = new(max(0, r.server.Now.Sub(p.Oldest).Seconds()))
		}
		return rows
	}
	for _, known := range r.ledger.Sinks {
		sink := StatusSink{
			Name: known.Name, Type: known.Type, Configured: len(r.cfg.Sinks) == 0 || slices.Contains(r.cfg.Sinks, known.Name),
			Condition: conditionUnknown, Rows: rows(known.Parked), DeliveredAt: utcOrNil(known.ProcessedAt),
		}
		if !sink.Configured && known.Parked.Parked == 0 && known.Parked.Dead == 0 {
			continue
		}
		if !known.Active {
			sink.Condition = monitoring.ConditionPaused
		}
		if r.status.Slot.State == SlotStreams {
			if st := known.State; st != nil {
				sink.Condition, sink.Since, sink.Cause, sink.TriedRate = monitoring.Condition(st.Condition), utcOrNil(st.Since), st.Cause, st.Rate
				if st.AsksAt.After(r.server.Now) {
					sink.AsksAt = utcOrNil(st.AsksAt)
				}
			} else if known.Active && r.server.HasState && sink.Configured {
				sink.Condition = monitoring.ConditionOK // the connector writes what is not well
			}
		}
		for i := range r.ledger.Jobs {
			if j := &r.ledger.Jobs[i]; j.Processor == known.Processor {
				sink.Backlog = monitoring.NewBacklogReport(&monitoring.BacklogStatus{
					ID: j.ID, Reason: string(j.Reason), FiledAt: j.Filed, Walked: j.Walked, Parked: j.Ordinal, Left: monitoring.RowsLeft(j.Estimate, j.Walked),
				})
			}
		}
		r.status.Sinks = append(r.status.Sinks, sink)
	}
	r.status.NoSink = rows(r.ledger.NoSink)
}

// showPending says which files of this program were not applied.
func (r *statusReader) showPending() {
	if !r.readable["outbox_migrations"] {
		return
	}
	missing, err := migrations.Missing(r.ledger.Migrations)
	if err != nil {
		r.unknown("the version of the ledger", err)
	}
	r.status.Database.Pending = missing
}

// showCleanup says what is deleted when, and what the last pass has done.
func (r *statusReader) showCleanup() {
	age := func(d time.Duration) *float64 {
		if d == cleanup.Forever {
			return nil
		}
		return new(d.Seconds())
	}
	c := &StatusCleanup{OutboxSeconds: age(r.cfg.Retention.Outbox), LedgerSeconds: age(r.cfg.Retention.Ledger)}
	r.status.Cleanup = c
	row := r.ledger.Retention
	if row == nil || row.LastPassAt == nil {
		return
	}
	c.ReportedAt, c.LogDroppedUntil = row.LastPassAt, row.LogDroppedUntil
	var report cleanup.Report
	if json.Unmarshal(row.Report, &report) == nil { // a person, or another version, may have written anything
		c.LastPass = &report
	}
}

func (r *statusReader) showSizes(ctx context.Context, conn *pgx.Conn) {
	z := provision.ReadSizes(ctx, conn, r.cfg.Source, &r.server)
	for _, unread := range z.Unread {
		r.unknown(unread.What, unread.Err)
	}
	r.status.Sizes = &StatusSizes{
		Outbox: z.Outbox, OutboxFrom: z.OutboxFrom, Log: z.Log, LogFrom: z.LogFrom, LogPartitions: z.LogPartitions,
		Parked: z.Parked, ParkedDeadRows: z.ParkedDeadRows, ParkedVacuumed: z.ParkedVacuumed,
	}
}

func (r *statusReader) showHolders() {
	for _, h := range r.server.Holders {
		r.status.Holders = append(r.status.Holders, StatusHolder{
			Kind: string(h.Kind), Name: h.Name, User: h.User, PID: h.PID, State: h.State, Since: h.Since,
		})
	}
	if r.server.Hidden {
		r.status.Unknown = append(r.status.Unknown, fmt.Sprintf("open transactions of other roles: user %q does not see them (grant pg_read_all_stats)", r.server.User))
	}
}

// utcOrNil returns a time in UTC, or nil if it is zero.
func utcOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(t.UTC())
}
