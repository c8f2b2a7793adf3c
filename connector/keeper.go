package connector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

const (
	lagEvery       = 2 * time.Second // a read of two views, which writes no WAL
	driftEvery     = 30 * time.Second
	heartbeatEvery = 60 * time.Second // not more often: each one writes WAL, and an idle server has to stay idle
	partitionEvery = time.Hour

	// dutyTimeout is how long a duty may take each time.
	dutyTimeout = 8 * time.Second
	// dutyRetry is how long after a failed try the next one follows, for duties with a longer interval.
	dutyRetry = 10 * time.Second
)

// keeperDatabase is PostgreSQL as the keeper needs it.
type keeperDatabase interface {
	// makePartitions makes the next partitions of the log, and of an outbox that init has partitioned.
	makePartitions(ctx context.Context) error
	// heartbeat writes the connector's sign of life to the ledger, and the numbers of its sinks that have changed.
	heartbeat(ctx context.Context, beats []ledger.Heartbeat) error
	// writeSinkState writes how a sink does.
	writeSinkState(ctx context.Context, processor int32, st ledger.SinkState) error
	// slotView looks at the slot and at the walsender.
	slotView(ctx context.Context) (slotView, error)
	// measure reads what costs more, for the metrics.
	measure(ctx context.Context, q provision.MeasureQuery) (provision.Measurement, error)
	// checkDrift looks whether the table with this OID is still the outbox, and whether all its rows come on the stream; see
	// Connector.checkDrift.
	checkDrift(ctx context.Context, oid uint32) (moved string, err error)
	// publicationVersion returns a text that changes when somebody changes the publication.
	publicationVersion(ctx context.Context, oid uint32) (string, error)
	// whyServerWaits says what our oldest running statement is waiting for, by another connection.
	whyServerWaits(ctx context.Context) string
	// lockHolder says who holds the lock of a table that nobody else may write meanwhile, "" if nobody does.
	lockHolder(ctx context.Context) string
}

// duty is a task that the keeper repeats as long as a session reads.
type duty struct {
	name       string
	every      time.Duration
	do         func(context.Context) error
	waitsFirst bool // the first time is not at the start of the session, but one interval later
}

// runKeeper does all duties until ctx ends. Each duty has its own goroutine, so that one that hangs does not hold up the others.
// runKeeper returns an error, which ends the session, only if a duty has found that no further try can help: for example,
// the publication no longer publishes what we need. It reports every other failure and tries again.
func (c *Connector) runKeeper(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	c.lag.walsender = walsenderState{since: time.Now()}
	defer c.lag.silentSince.Store(0)
	defer c.lag.heldSince.Store(0)
	defer c.measured.forget()
	measuring := databaseWatch{c: c}
	beats := heartbeats{status: c.shownStatus, write: c.db.heartbeat}
	for _, d := range []duty{
		{name: "log partitions", every: partitionEvery, do: c.db.makePartitions},
		{name: "heartbeat", every: heartbeatEvery, do: beats.beat},
		{name: "slot lag", every: lagEvery, do: c.measureLag},
		{name: "database", every: measureEvery, do: measuring.measure},
		{name: "publication", every: driftEvery, do: c.checkDrift, waitsFirst: true}, // preflight has just looked
	} {
		g.Go(func() error { return c.repeatDuty(ctx, d) })
	}
	g.Go(func() error {
		for wait.For(ctx, time.Second) == nil {
			c.unroutedLog.report(time.Now(), c.cfg.Logger)
		}
		return nil
	})
	return g.Wait()
}

// repeatDuty does d again and again until ctx ends. Health shows how it goes, and the log says each change.
func (c *Connector) repeatDuty(ctx context.Context, d duty) error {
	if d.waitsFirst && wait.For(ctx, d.every) != nil {
		return nil
	}
	goes := dutyReport{c: c, duty: d.name}
	for {
		next := time.Now().Add(d.every)
		err := c.doDuty(ctx, d)
		switch {
		case ctx.Err() != nil:
			return nil
		case exitcode.Of(err).Final():
			return err
		case err != nil:
			next = time.Now().Add(min(d.every, dutyRetry))
		}
		goes.report(err)
		if wait.For(ctx, time.Until(next)) != nil {
			return nil
		}
	}
}

// doDuty does d once, within dutyTimeout. If it takes longer, the error says what the server is waiting for.
func (c *Connector) doDuty(ctx context.Context, d duty) error {
	doing, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	asked := make(chan string, 1)
	asking := time.AfterFunc(hangAfter, func() { asked <- c.db.whyServerWaits(doing) })
	err := d.do(doing)
	if asking.Stop() || doing.Err() == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%s: PostgreSQL has not answered within %s: %s", d.name, dutyTimeout, <-asked)
}

// dutyReport says in health and log how a duty goes, at each change.
type dutyReport struct {
	c      *Connector
	duty   string
	said   bool // health knows of the duty
	failed bool // the last time
}

// report notes how the duty went this time.
func (r *dutyReport) report(err error) {
	r.c.noteLogin(err)
	failed := err != nil
	if r.said && failed == r.failed {
		return
	}
	r.c.cfg.Health.Set("keeper:"+r.duty, degradedBy(err))
	switch {
	case failed:
		r.c.cfg.Logger.Warn("keeper tries again", "duty", r.duty, "err", err)
	case r.said:
		r.c.cfg.Logger.Info("keeper works again", "duty", r.duty)
	}
	r.said, r.failed = true, failed
}

// degradedBy returns a component that is degraded if there is an error.
func degradedBy(err error) monitoring.Component {
	if err == nil {
		return monitoring.OK("")
	}
	return monitoring.Degraded(err.Error())
}

// errText returns the text of err, or nothing if err is nil.
func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// silentAfter is how long the walsender may leave our standby statuses unread before health and log say so. It reads none
// while it decodes a large transaction, so a shorter time would raise false alarms.
const silentAfter = 30 * time.Second

// walsenderState is what the keeper last saw of the walsender, the server's process that sends the stream.
type walsenderState struct {
	pid   int
	reply *time.Time // our last status message that it has taken; nil if our login may not see that
	since time.Time  // when the keeper first saw this reply
	// held names the physical slots of the standbys for which it holds the stream back (synchronized_standby_slots); empty if it does not.
	held string
}

// slotView is what the server says of the slot and of who streams from it.
type slotView struct {
	written   pglogrepl.LSN // how far the server has written
	walsender walsenderState
	slot      monitoring.SlotStatus
}

// measureLag is the duty that asks how far the server has written, for the lag in bytes. Keepalives say so as well, and sooner. But the
// LSN of a keepalive is how far the walsender has read, which stands still while it decodes a large transaction or is frozen.
//
// It also looks whether the walsender takes our status messages, because to the reader a walsender that is frozen looks like a stream
// without events.
func (c *Connector) measureLag(ctx context.Context) error {
	view, err := c.db.slotView(ctx)
	if err != nil {
		c.measured.slot.Store(nil)
		c.walsenderUnknown(time.Now())
		return err
	}
	if t := c.tracker.Load(); t != nil {
		t.Written(view.written)
	}
	c.measured.slot.Store(&view.slot)
	now := time.Now()
	return errors.Join(c.checkHeld(view.walsender.held, now), c.checkWalsender(view.walsender, now))
}

// heldAfter is how long the server may hold the stream back for a standby before health and log say so. It does so for a moment with each
// transaction.
const heldAfter = 10 * time.Second

// checkHeld returns an error if the server has held the stream back for standbys for heldAfter, and notes since when, for the lag. standbys
// is empty if it does not hold it back now.
func (c *Connector) checkHeld(standbys string, now time.Time) error {
	if standbys == "" {
		c.lag.heldSince.Store(0)
		return nil
	}
	c.lag.heldSince.CompareAndSwap(0, now.UnixNano())
	if now.Sub(time.Unix(0, c.lag.heldSince.Load())) < heldAfter {
		return nil
	}
	return fmt.Errorf("the server holds the stream back until the standbys that synchronized_standby_slots names (%s) have received what is to be sent; start them, "+
		"or take them out: docs/failover.md#settings", standbys)
}

// checkWalsender compares what is seen of the walsender now with what was seen before. It returns an error if the walsender has
// taken no status message of ours for silentAfter, and notes since when, for the lag.
func (c *Connector) checkWalsender(seen walsenderState, now time.Time) error {
	last := c.lag.walsender
	if seen.reply == nil || last.reply == nil || seen.pid != last.pid || !seen.reply.Equal(*last.reply) {
		seen.since = now
		c.lag.walsender = seen
		c.lag.silentSince.Store(0)
		return nil
	}
	silent := now.Sub(last.since)
	if silent < silentAfter {
		return nil
	}
	c.lag.silentSince.Store(last.since.UnixNano())
	return fmt.Errorf("the server's process that sends the stream (pid %d) has taken no report of ours for %s or more: it is at work in a large transaction, "+
		"or does not run (stopped, no CPU)", seen.pid, silentAfter)
}

// walsenderUnknown is called when the server could not be asked. If the walsender was last seen to take a status message more than
// silentAfter ago, the lag is counted from then on: a server that does not answer probably sends nothing either.
func (c *Connector) walsenderUnknown(now time.Time) {
	if now.Sub(c.lag.walsender.since) >= silentAfter {
		c.lag.silentSince.Store(c.lag.walsender.since.UnixNano())
	}
}
