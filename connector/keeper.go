package connector

import (
	"context"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	lagEvery       = 10 * time.Second
	driftEvery     = 30 * time.Second
	heartbeatEvery = 60 * time.Second // each writes WAL: an idle server must stay idle
	partitionEvery = time.Hour
)

// keep does what has to be done now and then. Its error ends the session: the publication no longer publishes what we
// need. Anything else it reports and tries again.
func (c *Connector) keep(ctx context.Context) error {
	duties := []struct {
		name  string
		every time.Duration
		do    func(context.Context) error
		next  time.Time
	}{
		{name: "log partitions", every: partitionEvery, do: c.makePartitions},
		{name: "heartbeat", every: heartbeatEvery, do: c.heartbeat},
		{name: "slot lag", every: lagEvery, do: c.measureLag},
	}
	nextDrift := time.Now().Add(driftEvery) // preflight has just looked
	fine := map[string]bool{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		now := time.Now()
		for i := range duties {
			d := &duties[i]
			if now.Before(d.next) {
				continue
			}
			d.next = now.Add(d.every)
			err := d.do(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if ok := err == nil; fine[d.name] != ok {
				fine[d.name] = ok
				c.cfg.Health.Set("keeper:"+d.name, ok, errText(err))
				if err != nil {
					c.cfg.Logger.Warn("keeper tries again", "duty", d.name, "err", err)
				}
			}
		}
		if !now.Before(nextDrift) {
			nextDrift = now.Add(driftEvery)
			if err := c.checkDrift(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
		c.unroutedLog.report(now, c.cfg.Logger)
		c.showLag(now)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// showLag goes on while there is no session: what was in flight when it ended waits still.
func (c *Connector) showLag(now time.Time) {
	if c.tracker != nil {
		c.cfg.Metrics.InFlight.Set(float64(c.tracker.InFlight()))
		c.cfg.Metrics.SlotLagSeconds.Set(c.tracker.Lag(now).Seconds())
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (c *Connector) makePartitions(ctx context.Context) error {
	_, err := c.pool.Exec(ctx, c.sql(ledger.MakePartitions))
	return err
}

func (c *Connector) heartbeat(ctx context.Context) error {
	_, err := c.pool.Exec(ctx, c.sql("update ledger.outbox_processors set heartbeat_at = now() where connector = $1"), c.cfg.Name)
	return err
}

func (c *Connector) measureLag(ctx context.Context) error {
	var lag *float64
	err := c.pool.QueryRow(ctx, `select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::float8
		from pg_replication_slots where slot_name = $1`, c.cfg.Source.Slot).Scan(&lag)
	if err != nil {
		return fmt.Errorf("measure slot lag: %w", err)
	}
	if lag != nil {
		c.cfg.Metrics.SlotLagBytes.Set(max(0, *lag))
	}
	return nil
}
