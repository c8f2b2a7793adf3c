package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/wait"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

const (
	// cleanEveryLeast and cleanEveryMost bound the time between two passes of the cleanup. A pass that finds nothing old enough is one
	// statement that reads, so an idle server stays idle.
	cleanEveryLeast = time.Second
	cleanEveryMost  = time.Minute
	// cleanShare says which part of the retention lies between two passes.
	cleanShare = 20
	// cleanRows is the most rows of a chunk. A chunk takes a core of the server, and its WAL delays the next COMMIT of a service.
	cleanRows = 100
	// cleanLeast is how many rows a second the cleanup deletes at least, as long as a chunk takes less than half of the time. So it keeps up
	// with 2,000 events a second whatever else goes on. Where more events come, it deletes cleanLead times as many as come.
	cleanLeast = 2500
	cleanLead  = 2
	// busyShare is the part of the window that is in flight while lanes or recorder have much to do.
	busyShare = 4
	// largePass is from how many rows on a pass has a line of its own in the log. Smaller ones are summed up, once in cleanSumEvery.
	largePass     = 100_000
	cleanSumEvery = 24 * time.Hour
)

// cleanupDatabase is PostgreSQL as the cleanup needs it.
type cleanupDatabase interface {
	// cleanup returns where passes of the cleanup delete.
	cleanup() cleanup.Database
}

// cleanupSource is the source with what is deleted.
func (p *postgres) cleanupSource() provision.Source {
	s := p.source.provision()
	s.Cleanup = p.retention.Deletes()
	return s
}

func (p *postgres) cleanup() cleanup.Database {
	return &cleanup.Postgres{Conn: p.pool, Source: p.cleanupSource()}
}

// keepClean deletes what is older than the retention until ctx ends, pass after pass.
func (c *Connector) keepClean(ctx context.Context, s *session) {
	retention := c.cfg.Retention
	if retention.Deletes() == (provision.Cleanup{}) {
		c.cfg.Metrics.CleanupLastSuccess.DeleteLabelValues() // 0 would say that the cleanup does not succeed
		return
	}
	c.cfg.Metrics.CleanupLastSuccess.WithLabelValues() // it may have been off before a reload
	pace := cleanupPace{arrived: s.arrived, busy: s.busy, at: time.Now()}
	cleaner := cleanup.New(cleanup.Config{
		Retention: retention, Database: c.db.cleanup(), ChunkRows: cleanRows,
		Rest: func(ctx context.Context, took time.Duration) error { return wait.For(ctx, pace.rest(took)) },
		Deleted: func(table string, rows int64) {
			c.cfg.Metrics.CleanupDeleted.WithLabelValues(table).Add(float64(rows))
		},
	})
	tells := cleanupReport{c: c, sumAt: time.Now().Add(cleanSumEvery)}
	every := cleanEvery(retention)
	for wait.For(ctx, every) == nil {
		report, err := cleaner.Pass(ctx)
		if ctx.Err() != nil {
			return
		}
		tells.report(&report, err)
	}
}

// cleanEvery is the time between two passes.
func cleanEvery(r cleanup.Retention) time.Duration {
	return min(max(min(r.Outbox, r.Ledger)/cleanShare, cleanEveryLeast), cleanEveryMost)
}

// arrived counts the events that the session has read.
func (s *session) arrived() uint64 { return s.tracker.Head() }

// busy reports whether lanes and recorder have much to do.
func (s *session) busy() bool { return s.tracker.InFlight() > s.c.cfg.Delivery.MaxInFlight/busyShare }

// cleanupPace says how long the cleanup rests after a chunk: deletions take disk and CPU away from the recorder, and both from the
// services. What has become too old during an outage of the cleanup is deleted slowly, since nobody waits for it.
type cleanupPace struct {
	arrived func() uint64
	busy    func() bool
	at      time.Time // when rest was called last, and what had arrived by then
	then    uint64
}

// rest returns for how long to rest after a chunk that took so long. The cleanup never takes more than half of the time.
func (p *cleanupPace) rest(took time.Duration) time.Duration {
	now, arrived := time.Now(), p.arrived()
	rate := float64(arrived-p.then) / max(now.Sub(p.at), time.Millisecond).Seconds()
	p.at, p.then = now, arrived
	rows := float64(cleanLeast)
	if !p.busy() {
		rows = max(rows, cleanLead*rate)
	}
	every := time.Duration(cleanRows / rows * float64(time.Second))
	return max(took, every-took)
}

// cleanupReport says in health, log and metrics what the cleanup does, at each change.
type cleanupReport struct {
	c       *Connector
	problem cleanupProblem // of the rows
	detail  string
	shown   monitoring.Component // what health says
	told    cleanupProblem       // what the log has said
	said    bool                 // health knows of the cleanup
	sum     int64
	sumAt   time.Time
	lost    bool // the log says that rows are unaccounted
}

// cleanupProblem is why the cleanup cannot do its work.
type cleanupProblem string

const (
	cleanupWorks    cleanupProblem = ""
	cleanupFails    cleanupProblem = "old rows are not deleted"
	cleanupNoRight  cleanupProblem = "old rows are not deleted: the login lacks a right"
	cleanupBloat    cleanupProblem = "deleted rows are not vacuumed away"
	cleanupRefusals cleanupProblem = "the database refuses to delete old rows of the outbox"
	cleanupNoDrop   cleanupProblem = "the database refuses to drop an old day of the log"
)

// over is what the log says when the problem is over.
func (p cleanupProblem) over() string {
	if p == cleanupBloat {
		return "deleted rows are vacuumed away again"
	}
	return "old rows are deleted again"
}

// judgeCleanup returns what a pass says of the cleanup: why it does not do its work, and a sentence for a person.
func judgeCleanup(r *cleanup.Report, err error) (cleanupProblem, string) {
	kept := &r.Outbox.Kept
	switch {
	case errors.Is(err, ledger.ErrCleanupRuns):
		return cleanupWorks, "another session cleans up just now"
	case err != nil:
		return cleanupFails, err.Error()
	case len(r.Grants) > 0:
		stays, instead := r.Lacks()
		return cleanupNoRight, stays + "; as the owner of the tables: " + strings.Join(r.Grants, "; ") + "; or " + instead
	case kept.Refused > 0:
		return cleanupRefusals, fmt.Sprintf("%d rows of the outbox are settled and old enough, and the database refuses to delete them: %s; "+
			"see docs/retention.md#refused", kept.Refused, r.Outbox.Refused)
	case r.Log.Refused:
		return cleanupNoDrop, "old days of the log stay: " + r.Log.Stays
	case r.Blocked != "":
		return cleanupWorks, "nothing is deleted now: " + r.Blocked
	}
	var notes []string
	if kept.Unaccounted > 0 {
		notes = append(notes, fmt.Sprintf("the ledger does not know %d rows of the outbox that the stream is past, so they stay; see docs/retention.md#unaccounted", kept.Unaccounted))
	}
	if r.Log.Stays != "" {
		notes = append(notes, "old days of the log stay: "+r.Log.Stays)
	}
	return cleanupWorks, strings.Join(notes, "; ")
}

// judgeBloat adds to what judgeCleanup says the tables whose deleted rows are not vacuumed away. That is a problem if it lasts.
func judgeBloat(all []cleanup.Bloat, problem cleanupProblem, detail string) (cleanupProblem, string) {
	var texts []string
	if detail != "" {
		texts = append(texts, detail)
	}
	for i := range all {
		texts = append(texts, all[i].String())
		if problem == cleanupWorks && all[i].Long() {
			problem = cleanupBloat
		}
	}
	return problem, strings.Join(texts, "; ")
}

// report notes what a pass has done.
func (t *cleanupReport) report(r *cleanup.Report, err error) {
	log := t.c.cfg.Logger
	t.c.noteLogin(err)
	problem, detail := judgeCleanup(r, err)
	_, all := judgeBloat(r.Bloat, problem, detail)
	t.c.kept.cleaned.Store(&monitoring.CleanupStatus{
		EndedAt: time.Now(), Took: time.Duration(r.Seconds * float64(time.Second)), Rows: r.Outbox.Deleted,
		Partitions: len(r.Log.Dropped) + len(r.Outbox.Partitions.Dropped), Complete: r.Complete && err == nil, Detail: all,
	})
	if problem == cleanupWorks && r.Complete {
		t.c.cfg.Metrics.CleanupLastSuccess.WithLabelValues().SetToCurrentTime()
	}
	if !r.FromStart && problem == cleanupWorks && (t.problem == cleanupRefusals || t.problem == cleanupNoDrop || detail == "") && t.said {
		problem, detail = t.problem, t.detail // only a pass over all rows knows better
	}
	t.problem, t.detail = problem, detail
	problem, detail = judgeBloat(r.Bloat, problem, detail)
	now := degradedBy(nil)
	now.Detail = detail
	if problem != cleanupWorks {
		now = degradedBy(errors.New(detail))
	}
	if !t.said || now.Status != t.shown.Status || now.Detail != t.shown.Detail {
		t.c.cfg.Health.Set("keeper:cleanup", now)
	}
	switch {
	case problem != cleanupWorks && problem != t.told:
		log.Warn(string(problem), "err", detail) //nolint:sloglint // it is one of the constants above
	case problem == cleanupWorks && t.told != cleanupWorks:
		log.Info(t.told.over()) //nolint:sloglint // it is one of two constants
	}
	t.shown, t.told, t.said = now, problem, true
	if n := r.Outbox.Kept.Unaccounted; n > 0 && !t.lost {
		t.lost = true
		log.Warn("the ledger does not know rows of the outbox that the stream is past, so they stay; see docs/retention.md#unaccounted", "rows", n, "event_id", r.Outbox.Unaccounted)
	}
	t.tellDeleted(r)
}

// tellDeleted has a line in the log for a large pass, and one a day for all others.
func (t *cleanupReport) tellDeleted(r *cleanup.Report) {
	if r.Outbox.Deleted >= largePass || len(r.Log.Dropped) > 0 || len(r.Outbox.Partitions.Dropped) > 0 {
		t.c.cfg.Logger.Info("old rows were deleted", "rows", r.Outbox.Deleted, "partitions", slices.Concat(r.Outbox.Partitions.Dropped, r.Log.Dropped),
			"took", time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond).String())
	} else {
		t.sum += r.Outbox.Deleted
	}
	if now := time.Now(); !now.Before(t.sumAt) {
		if t.sum > 0 {
			t.c.cfg.Logger.Info("old rows were deleted", "rows", t.sum, "within", cleanSumEvery.String())
		}
		t.sum, t.sumAt = 0, now.Add(cleanSumEvery)
	}
}
