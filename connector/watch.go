package connector

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// hangAfter is how long a step may wait for PostgreSQL before that is told.
	hangAfter  = 5 * time.Second
	watchEvery = time.Second
	// reasonEvery and askTimeout are how often the server is asked for what a step waits, and how long that may take.
	reasonEvery    = 5 * time.Second
	catalogTimeout = 2 * time.Second
)

// pgCall is something that waits for an answer of PostgreSQL. Nothing bounds its time: what a COMMIT waits for may come back, and
// whoever gives it up does not know whether it went through.
type pgCall struct {
	name  string
	since atomic.Int64 // in Unix nanoseconds; 0 while it is not under way
}

func (s *pgCall) begin() { s.since.Store(time.Now().UnixNano()) }
func (s *pgCall) end()   { s.since.Store(0) }

// pgCalls are the parts of a connector that may hang without an error.
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

// longestHang gives the step that has waited longest, and since when; nil where none has waited long.
func (s *pgCalls) longestHang(now time.Time) (*pgCall, time.Time) {
	var longest *pgCall
	var from time.Time
	for _, each := range []*pgCall{&s.prepare, &s.preflight, &s.open, &s.takeOver, &s.build, &s.record} {
		n := each.since.Load()
		if n == 0 {
			continue
		}
		if since := time.Unix(0, n); now.Sub(since) >= hangAfter && (longest == nil || since.Before(from)) {
			longest, from = each, since
		}
	}
	return longest, from
}

// watchedLedger wraps a ledger, so that health and log can say when one of its transactions hangs.
type watchedLedger struct {
	checkpoint.Ledger
	step *pgCall
}

func (w watchedLedger) Commit(ctx context.Context, b checkpoint.Batch) error {
	w.step.begin()
	defer w.step.end()
	return w.Ledger.Commit(ctx, b)
}

// watch shows the lag and what hangs, from the start of Run to its end. It waits for nothing itself for longer than askTimeout,
// so that what it shows goes on whatever hangs.
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
		c.showLag(time.Now())
		c.showHang(ctx, &h, c.whyServerWaits)
	}
}

// hangReport is what watch has told of a step that hangs.
type hangReport struct {
	step  *pgCall // nil while none does
	since time.Time
	why   string // as the server says
	asked time.Time

	quiet bool      // the log is not told: it is the same step again,
	last  *pgCall   // which hung before,
	until time.Time // until then
}

// quietFor keeps a step that is tried again and again, and hangs each time, from filling the log.
const quietFor = time.Minute

// showHang tells what hangs: /readyz says it as long as that lasts, the log once when it begins and once when it is over.
func (c *Connector) showHang(ctx context.Context, h *hangReport, ask func(context.Context) string) {
	now := time.Now()
	hanging, since := c.calls.longestHang(now)
	if h.step != nil && (hanging != h.step || !since.Equal(h.since)) {
		c.cfg.Health.Set("postgres", monitoring.Component{OK: true})
		if !h.quiet {
			c.cfg.Logger.Info("no longer waiting for PostgreSQL", "step", h.step.name, "waited", now.Sub(h.since).Round(time.Second).String())
		}
		*h = hangReport{last: h.step, until: now}
	}
	if hanging == nil {
		return
	}
	begins := h.step == nil
	if begins {
		h.quiet = hanging == h.last && now.Sub(h.until) < quietFor
	}
	h.step, h.since = hanging, since
	c.cfg.Health.Set("postgres", monitoring.Component{Detail: h.text(now)}) // asking may take a while
	if now.Sub(h.asked) >= reasonEvery {
		h.why, h.asked = ask(ctx), now
		c.cfg.Health.Set("postgres", monitoring.Component{Detail: h.text(now)})
	}
	if begins && !h.quiet {
		c.cfg.Logger.Warn("waiting for PostgreSQL", "step", h.step.name, "err", h.text(now))
	}
}

func (h *hangReport) text(now time.Time) string {
	text := fmt.Sprintf("%s has waited for PostgreSQL for %s", h.step.name, now.Sub(h.since).Round(time.Second))
	if h.why != "" {
		text += ": " + h.why
	}
	return text
}

// whyServerWaits asks over another connection for what a statement of ours waits. It only reads, so that it does not wait for the same.
func (c *Connector) whyServerWaits(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	rows, err := c.pool.Query(ctx, `select a.pid, coalesce(a.state, ''), coalesce(a.wait_event_type, ''), coalesce(a.wait_event, ''),
			left(a.query, 60), case when a.wait_event_type = 'Lock' then array_to_string(pg_blocking_pids(a.pid), ', ') else '' end,
			current_setting('synchronous_standby_names')
		from pg_stat_activity a
		where a.application_name in (left($1::text, 63), 'outbox-cdc') and a.backend_type = 'client backend' and a.pid <> pg_backend_pid()
			and a.state <> 'idle' and a.query_start < clock_timestamp() - interval '3 s'
		order by a.query_start limit 1`, ledger.ApplicationName(c.cfg.Source.Slot))
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

// backendWait is a backend of ours as pg_stat_activity has it.
type backendWait struct {
	pid                int // 0 where there is none
	state, kind, event string
	query, blockers    string
	standbys           string // synchronous_standby_names
}

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
