package connector

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

const (
	// measureEvery is how often PostgreSQL is asked for what the metrics say of it. No scrape asks.
	measureEvery = 15 * time.Second
	// measureRest is for how long the question for sizes rests, in times of what it has taken. With hundreds of partitions it takes long, and
	// then it is asked less often than every measureEvery.
	measureRest = 300
	// oldestRest is for how long nobody looks for the oldest row of the outbox after that has been given up. The server's log has a line about
	// each time.
	oldestRest = 10 * time.Minute
	// transactionWAL, outcomeWAL and parkedWAL are about how many bytes of WAL a transaction of the recorder takes, each of its outcomes, and a
	// row of outbox_parked besides its event: see docs/sizing.md.
	transactionWAL, outcomeWAL, parkedWAL = 900, 200, 400
)

// walOf returns about how much WAL a batch of the recorder has taken.
func walOf(b checkpoint.Batch) int64 {
	size := transactionWAL
	for _, outcomes := range b.Outcomes {
		size += outcomeWAL * len(outcomes.Rows)
		for i := range outcomes.Rows {
			if p := outcomes.Rows[i].Parked; p != nil {
				size += parkedWAL + len(p.Event) + len(p.Payload)
			}
		}
	}
	return int64(size)
}

// measuredDatabase is what the keeper has last asked PostgreSQL for the metrics. It is empty without a session.
type measuredDatabase struct {
	slot atomic.Pointer[monitoring.SlotStatus]     // every lagEvery
	rest atomic.Pointer[monitoring.DatabaseStatus] // every measureEvery; without Slot
}

// forget is called at the end of a session: then another process may stream.
func (m *measuredDatabase) forget() {
	m.slot.Store(nil)
	m.rest.Store(nil)
}

// status returns all of it, or nil if nothing is known.
func (m *measuredDatabase) status() *monitoring.DatabaseStatus {
	slot, rest := m.slot.Load(), m.rest.Load()
	if slot == nil && rest == nil {
		return nil
	}
	var all monitoring.DatabaseStatus
	if rest != nil {
		all = *rest
	}
	all.Slot = slot
	return &all
}

// databaseWatch is the keeper's duty that asks PostgreSQL for the metrics, as long as a session lasts. Only the goroutine of the duty uses it.
type databaseWatch struct {
	c           *Connector
	timeIndexed *bool                     // as the last measurement has found
	storage     *monitoring.StorageStatus // as it was last asked
	storageDue  time.Time
	oldestDue   time.Time
}

func (w *databaseWatch) measure(ctx context.Context) error {
	now := time.Now()
	q := provision.MeasureQuery{Storage: !now.Before(w.storageDue), TimeIndexed: w.timeIndexed}
	q.Oldest = q.Storage && !now.Before(w.oldestDue)
	m, err := w.c.db.measure(ctx, q)
	if err != nil {
		w.c.measured.rest.Store(nil)
		return err
	}
	w.timeIndexed = m.TimeIndexed
	if q.Storage {
		w.storage = storageStatus(m.Storage)
		w.storageDue = now.Add(measureRest * m.StorageTook)
	}
	if m.OldestRefused {
		w.oldestDue = now.Add(oldestRest)
	}
	w.c.measured.rest.Store(w.status(&m))
	return nil
}

func (w *databaseWatch) status(m *provision.Measurement) *monitoring.DatabaseStatus {
	st := &monitoring.DatabaseStatus{
		AskedAt: time.Now(), Failover: textOf(m.Failover), Synced: textOf(m.Synced), Spilled: m.Spilled, XminAge: m.XminAge, SyncStandbys: m.SyncStandbys,
		Connections: connectionCounts(m.Connections), ConnectionLimit: w.c.cfg.Source.MaxConnections, Storage: w.storage,
	}
	if m.Plugin != nil {
		st.Plugin = *m.Plugin
	}
	if m.ParkedAutovacuumedAt != nil {
		st.ParkedAutovacuumedAt = *m.ParkedAutovacuumedAt
	}
	return st
}

func storageStatus(s *provision.Storage) *monitoring.StorageStatus {
	if s == nil {
		return nil
	}
	st := &monitoring.StorageStatus{AskedAt: time.Now(), Outbox: s.Outbox}
	for _, name := range slices.Sorted(maps.Keys(s.Ledger)) {
		st.Ledger = append(st.Ledger, monitoring.TableSize{Table: name, Bytes: s.Ledger[name]})
	}
	if s.Oldest != nil {
		st.OldestRow = *s.Oldest
	}
	return st
}

// connectionCounts sums up the states of pg_stat_activity. It returns nil if not even the connection that has asked was seen: the login then
// may not see its own.
func connectionCounts(states map[string]int) *monitoring.ConnectionCounts {
	if len(states) == 0 {
		return nil
	}
	var c monitoring.ConnectionCounts
	for state, n := range states {
		switch state {
		case "active", "fastpath function call":
			c.Active += n
		case "idle":
			c.Idle += n
		case "idle in transaction", "idle in transaction (aborted)":
			c.InTransaction += n
		default: // track_activities is off
			c.Other += n
		}
	}
	return &c
}

// textOf returns a value as a label has it, and nothing for one that is not known.
func textOf(value *bool) string {
	if value == nil {
		return ""
	}
	return fmt.Sprint(*value)
}
