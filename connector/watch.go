package connector

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// hangAfter is how long a call may wait for PostgreSQL before health and log say that it hangs.
	hangAfter = 5 * time.Second
	// failAfter is how long a call may wait for PostgreSQL before this process counts as failed. A restart of a server or a switch
	// to another one takes some seconds, for which nobody should be taken out of service.
	failAfter  = 10 * time.Second
	watchEvery = time.Second
	// reasonEvery is how often we ask the server what a call that hangs is waiting for.
	reasonEvery = 5 * time.Second
	// catalogTimeout bounds a question to PostgreSQL's own catalogs and views.
	catalogTimeout = 2 * time.Second
)

// pgCall is a part of the connector's work that waits for PostgreSQL, and perhaps without a time limit. The transaction that
// records outcomes has none: what its COMMIT waits for may come back, and if we gave it up, we would not know whether it went
// through. The log calls it a step.
type pgCall struct {
	name  string
	since atomic.Int64 // when it began, in Unix nanoseconds; 0 while it is not under way
}

func (p *pgCall) begin() { p.since.Store(time.Now().UnixNano()) }
func (p *pgCall) end()   { p.since.Store(0) }

// pgCalls are the calls that watch observes, because they may hang for long without an error.
type pgCalls struct {
	prepare, preflight, open, takeOver, build, record pgCall
}

func newPGCalls() *pgCalls {
	return &pgCalls{
		prepare:   pgCall{name: "init"},
		preflight: pgCall{name: "the preflight of a session"},
		open:      pgCall{name: "the start of the replication"},
		takeOver:  pgCall{name: "taking over the ledger"},
		build:     pgCall{name: "the first look at the ledger"},
		record:    pgCall{name: "the transaction that records outcomes"},
	}
}

// longestHang returns the call that has waited longest, and since when. It returns nil if none has waited for hangAfter.
func (p *pgCalls) longestHang(now time.Time) (*pgCall, time.Time) {
	var longest *pgCall
	var from time.Time
	for _, call := range []*pgCall{&p.prepare, &p.preflight, &p.open, &p.takeOver, &p.build, &p.record} {
		n := call.since.Load()
		if n == 0 {
			continue
		}
		if since := time.Unix(0, n); now.Sub(since) >= hangAfter && (longest == nil || since.Before(from)) {
			longest, from = call, since
		}
	}
	return longest, from
}

// watchedLedger is a ledger that notes when a Commit begins and ends, so that health and log can say that it hangs, and metrics how long it takes.
type watchedLedger struct {
	checkpoint.Ledger
	call  *pgCall // of Commit
	clock *recordClock
}

func (w watchedLedger) Commit(ctx context.Context, b checkpoint.Batch) error {
	w.call.begin()
	defer w.call.end()
	try := time.Now()
	w.clock.tries(try)
	err := w.Ledger.Commit(ctx, b)
	if err == nil {
		w.clock.committed(b.Watermark.LSN, try, time.Now())
		w.clock.stages.ownWAL.Add(walOf(b))
	}
	return err
}

func (w watchedLedger) Close() {
	w.Ledger.Close()
	w.clock.close(time.Now())
}

// watch says which call hangs, every second from the start of Run to its end. It waits for nothing longer than catalogTimeout, so
// that it goes on whatever hangs.
func (c *Connector) watch(ctx context.Context) {
	var h hangReport
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		c.showHang(ctx, &h, c.db.whyServerWaits)
		c.showPassed()
	}
}

// hangReport is what showHang has said about calls that hang. The zero value says that none has hung yet.
type hangReport struct {
	call  *pgCall   // the call that hangs, or nil
	since time.Time // when the call began
	why   string    // what it waits for, as the server says
	asked time.Time // when the server was asked for why

	quiet   bool      // the log says nothing: this call has hung less than quietFor ago
	last    *pgCall   // the call that hung before
	lastEnd time.Time // when last ceased to hang
}

// quietFor is how long the log says nothing more about a call after it has hung. Without it, a call that is tried again and again
// and hangs each time would fill the log.
const quietFor = time.Minute

// showHang says which call hangs: /readyz as long as it hangs (degraded at first, and failed from failAfter on), the log once when it begins to hang and once when that is over.
// ask returns what the server is waiting for.
func (c *Connector) showHang(ctx context.Context, h *hangReport, ask func(context.Context) string) {
	now := time.Now()
	call, since := c.calls.longestHang(now)
	if h.call != nil && (call != h.call || !since.Equal(h.since)) {
		c.cfg.Health.Set("postgres", monitoring.OK(""))
		if !h.quiet {
			c.cfg.Logger.Info("no longer waiting for PostgreSQL", "step", h.call.name, "waited", now.Sub(h.since).Round(time.Second).String())
		}
		*h = hangReport{last: h.call, lastEnd: now}
	}
	if call == nil {
		return
	}
	begins := h.call == nil
	if begins {
		h.quiet = call == h.last && now.Sub(h.lastEnd) < quietFor
	}
	h.call, h.since = call, since
	// Health says it before the server is asked, because asking may take a while.
	c.cfg.Health.Set("postgres", h.component(now))
	if now.Sub(h.asked) >= reasonEvery {
		h.why, h.asked = ask(ctx), now
		c.cfg.Health.Set("postgres", h.component(now))
	}
	if begins && !h.quiet {
		c.cfg.Logger.Warn("waiting for PostgreSQL", "step", h.call.name, "err", h.text(now))
	}
}

// component returns what /readyz says of the call that hangs.
func (h *hangReport) component(now time.Time) monitoring.Component {
	if now.Sub(h.since) < failAfter {
		return monitoring.Degraded(h.text(now))
	}
	return monitoring.Failed(h.text(now))
}

// text says which call has waited for how long, and for what.
func (h *hangReport) text(now time.Time) string {
	text := fmt.Sprintf("%s has waited for PostgreSQL for %s", h.call.name, now.Sub(h.since).Round(time.Second))
	if h.why != "" {
		text += ": " + h.why
	}
	return text
}

// backendWait describes a backend of ours that runs a statement, as pg_stat_activity shows it.
type backendWait struct {
	pid                int    // 0 if no backend runs a statement of ours
	state, kind, event string // state, wait_event_type, wait_event
	query, blockers    string // the statement; pids of the backends that block it, separated by commas
	standbys           string // synchronous_standby_names
}

// String says what the backend is waiting for, and what a person can do about it.
func (w backendWait) String() string {
	if w.pid == 0 {
		return "no process of the server has a statement of ours: it did not arrive (a process that does not run, a network that loses packets), or the " +
			"connection is not made yet"
	}
	backend := fmt.Sprintf("backend %d (%s, %q)", w.pid, w.state, w.query)
	switch {
	case w.event == "SyncRep":
		return fmt.Sprintf("%s waits for a standby to confirm (SyncRep, synchronous_standby_names = '%s'); bring the standby back, or take it out of "+
			"synchronous_standby_names and reload", backend, w.standbys)
	case w.blockers != "":
		return fmt.Sprintf("%s waits for a lock (%s) that pid %s holds", backend, w.event, w.blockers)
	case w.event != "":
		return fmt.Sprintf("%s waits for %s (%s)", backend, w.event, w.kind)
	}
	return backend + " waits for nothing that the server names: it is at work, or its process does not run (stopped, no CPU)"
}
