package cleanup

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// metricsAge is how long windows of outbox_metrics are kept.
const metricsAge = 30 * 24 * time.Hour

// Database is what a pass needs of PostgreSQL: Postgres, or a test's.
type Database interface {
	// Lacking returns the statements by which the owner of the tables gives the rights that the login lacks for the cleanup.
	Lacking(ctx context.Context) ([]string, error)
	// OpenOutbox looks at the outbox's columns. It reports whether the login may delete from it.
	OpenOutbox(ctx context.Context) (outbox Outbox, may bool, err error)
	// DropLogPartition drops the oldest partition of the log if it may go, and returns the partitions that it has looked at.
	DropLogPartition(ctx context.Context, cutoff ledger.LogCutoff) ([]ledger.LogPartition, error)
	// PlanLogDrop returns all partitions of the log with what would become of them.
	PlanLogDrop(ctx context.Context, cutoff ledger.LogCutoff) ([]ledger.LogPartition, error)
	// DeleteMetrics deletes some windows of outbox_metrics that ended this long ago, and returns how many.
	DeleteMetrics(ctx context.Context, age time.Duration, limit int) (int64, error)
	// DeadRows returns how many deleted rows the outbox and outbox_parked have, and what keeps vacuum from them.
	DeadRows(ctx context.Context) ([]ledger.DeadRows, error)
	// WriteReport writes a report into outbox_retention, as JSON.
	WriteReport(ctx context.Context, report []byte) error
}

// Config describes a Cleaner. All fields are required unless their comment says otherwise.
type Config struct {
	Retention Retention
	Database  Database
	// ChunkRows is the most rows of a chunk; 0 means 1,000. A smaller chunk delays others less.
	ChunkRows int
	// Rest is called between two steps with the time that the last one took, and with 0 while the pass waits for another session that
	// cleans up. Its error ends the pass. It may be nil.
	Rest func(ctx context.Context, took time.Duration) error
	// Deleted hears of each step that has deleted rows of a table. It may be nil.
	Deleted func(table string, rows int64)
}

// Cleaner makes passes. It remembers between them how far it has looked, so that a pass does not look again at what stays for long. For
// one goroutine at a time.
type Cleaner struct {
	cfg     Config
	opened  Outbox // nil if the outbox has to be looked at first
	at      place
	witness ledger.Witness
	fullAt  time.Time     // when the next pass from the beginning is due
	rested  time.Duration // in this pass, by cfg.Rest
	shown   shownReport
	days    map[uint32]*oldDay // by the oid of the partition
	bloat   bloatWatch
}

// New makes a Cleaner.
func New(cfg Config) *Cleaner {
	if cfg.Rest == nil {
		cfg.Rest = func(context.Context, time.Duration) error { return nil }
	}
	if cfg.ChunkRows == 0 {
		cfg.ChunkRows = chunkRows
	}
	if cfg.Deleted == nil {
		cfg.Deleted = func(string, int64) {}
	}
	c := &Cleaner{cfg: cfg}
	c.cfg.Rest = func(ctx context.Context, took time.Duration) error {
		began := time.Now()
		err := cfg.Rest(ctx, took)
		c.rested += time.Since(began)
		return err
	}
	return c
}

const (
	// fullEvery and fullRest say how often a pass looks at all old rows: not more often than fullEvery, and with a rest of so many times
	// what the last one took, without its own rests. Only such a pass finds rows with old times that were committed late, and only behind
	// one are partitions of the log dropped.
	fullEveryMost  = time.Hour
	fullEveryLeast = 10 * time.Second
	fullRest       = 20
)

// fullEvery is how often a pass looks at all old rows.
func (c *Cleaner) fullEvery() time.Duration {
	return min(max(c.cfg.Retention.Outbox/10, fullEveryLeast), fullEveryMost)
}

// Pass deletes what is old enough and may go. Its report says what it has done also if there is an error, which says why the pass has
// ended early: it stands in the report as well.
func (c *Cleaner) Pass(ctx context.Context) (Report, error) {
	r := c.report()
	c.rested = 0
	r.FromStart = !r.BeganAt.Before(c.fullAt)
	var err error
	r.Complete, err = c.deleteAll(ctx, &r)
	if err != nil {
		c.opened = nil // the table may have changed
	}
	if worked := time.Since(r.BeganAt) - c.rested; r.FromStart && (r.Complete || err != nil) {
		c.fullAt = time.Now().Add(max(c.fullEvery(), fullRest*worked))
	}
	if err == nil && c.bloat.due(&r) {
		err = c.bloat.look(ctx, c.cfg.Database)
	}
	r.Bloat = c.bloat.now
	r.end(err)
	if failed := c.show(ctx, &r); err == nil && failed != nil {
		err = failed
		r.Error = err.Error()
	}
	return r, err
}

// DryRun looks at what a pass would do. It looks at no more than most rows of the outbox; 0 sets no limit.
func (c *Cleaner) DryRun(ctx context.Context, most int64) (Report, error) {
	r := c.report()
	r.FromStart, r.DryRun = true, true
	var err error
	r.Complete, err = c.plan(ctx, &r, most)
	r.end(err)
	return r, err
}

func (c *Cleaner) plan(ctx context.Context, r *Report, most int64) (complete bool, err error) {
	if r.Grants, err = c.cfg.Database.Lacking(ctx); err != nil {
		return false, err
	}
	w, complete, err := c.outbox(ctx, r, most)
	if err != nil || r.Blocked != "" {
		return false, err
	}
	return complete, c.log(ctx, r, w)
}

func (c *Cleaner) deleteAll(ctx context.Context, r *Report) (complete bool, err error) {
	if r.FromStart || len(c.shown.report.Grants) > 0 {
		c.opened = nil
		if r.Grants, err = c.cfg.Database.Lacking(ctx); err != nil {
			return false, err
		}
	}
	w, complete, err := c.outbox(ctx, r, 0)
	if err != nil || r.Blocked != "" || !r.FromStart {
		return complete && r.Blocked == "", err
	}
	if !complete {
		r.Log.Stays = "not all old rows of the outbox were looked at: the log says which of them may be deleted"
	} else if err := c.log(ctx, r, w); err != nil {
		return false, err
	}
	return complete, c.metrics(ctx, r)
}

// outbox deletes rows of the outbox. It returns the walk over them, nil if there was none.
func (c *Cleaner) outbox(ctx context.Context, r *Report, most int64) (w *walk, complete bool, err error) {
	if c.cfg.Retention.Outbox == Forever {
		return nil, true, nil
	}
	if c.opened == nil {
		opened, may, err := c.cfg.Database.OpenOutbox(ctx)
		if err != nil {
			return nil, false, err
		}
		if !may && !r.DryRun {
			return nil, false, nil // Report.Grants says it
		}
		c.opened = opened
	}
	w = &walk{
		outbox: c.opened, chunkRows: c.cfg.ChunkRows, all: r.FromStart, most: most, rest: c.cfg.Rest, report: &r.Outbox, at: c.at, witness: c.witness,
		deleted: func(rows int64) { c.cfg.Deleted("event_outbox", rows) },
		query: ledger.ChunkQuery{
			Age: c.cfg.Retention.Outbox, Witness: c.witness, Patience: chunkPatience, LockPatience: lockPatience, Explain: r.DryRun,
		},
	}
	w.query.WholeDays = w.outbox.ByDay() && c.cfg.Retention.Outbox >= wholeDay
	if err = c.dropDays(ctx, w, r); err == nil {
		complete, err = w.run(ctx)
	}
	r.Blocked = w.blocked
	if r.DryRun {
		c.opened = nil
		return w, complete, err
	}
	c.at, c.witness = w.next(), w.witness
	if errors.Is(err, ledger.ErrMayNotDelete) { // the right was taken away just now
		c.opened = nil
		r.Grants, err = c.cfg.Database.Lacking(ctx)
		return w, false, err
	}
	return w, complete, err
}

// clockShare says for which part of its retention a row of the outbox may have a time that is ahead of the server's clock, up to clockMost,
// because the service that wrote it has another clock. The log is kept for so much longer: its row is written before the outbox's row is
// old enough by its time.
const (
	clockShare = 7
	clockMost  = time.Hour
	// zoneMost is how far a time without a time zone may be ahead: it counts as UTC, and a service in the east may write its local time.
	zoneMost = 15 * time.Hour
)

// lacksRight is why the log stays if Report.Grants says more.
const lacksRight = "the login lacks a right"

// log drops partitions of the log. w is a walk over all old rows of the outbox, nil if the outbox keeps its rows.
func (c *Cleaner) log(ctx context.Context, r *Report, w *walk) error {
	if c.cfg.Retention.Ledger == Forever {
		return nil
	}
	cutoff := ledger.LogCutoff{Age: c.cfg.Retention.Ledger}
	if w != nil {
		outbox := c.cfg.Retention.Outbox
		ahead := min(outbox/clockShare, clockMost)
		if w.outbox.Zoneless() {
			ahead = zoneMost
		}
		if w.query.WholeDays { // the youngest day that was looked at ended up to a day before
			ahead += wholeDay
		}
		cutoff.Age = max(cutoff.Age, outbox+ahead)
		cutoff.Needed = w.logNeeded
	}
	if r.DryRun {
		all, err := c.cfg.Database.PlanLogDrop(ctx, cutoff)
		if err != nil && len(r.Grants) > 0 {
			r.Log.Stays, err = lacksRight, nil
		}
		r.Log.note(all)
		r.Log.noteNeeded(all, cutoff)
		return err
	}
	age := cutoff.Age
	for {
		began := time.Now()
		if w != nil { // rows that have become old enough since were not looked at
			cutoff.Age = age + began.Sub(w.lookedAt)
		}
		looked, err := c.cfg.Database.DropLogPartition(ctx, cutoff)
		if err != nil {
			if len(r.Grants) > 0 {
				r.Log.Stays = lacksRight
				return nil
			}
			return err
		}
		if !r.Log.note(looked) {
			r.Log.noteNeeded(looked, cutoff)
			return nil
		}
		if err := c.cfg.Rest(ctx, time.Since(began)); err != nil {
			return err
		}
	}
}

// metrics deletes old windows of outbox_metrics.
func (c *Cleaner) metrics(ctx context.Context, r *Report) error {
	for {
		began := time.Now()
		n, err := c.cfg.Database.DeleteMetrics(ctx, metricsAge, chunkRows)
		if err != nil {
			return err
		}
		r.Metrics += n
		if n > 0 {
			c.cfg.Deleted("outbox_metrics", n)
		}
		if n < chunkRows {
			return nil
		}
		if err := c.cfg.Rest(ctx, time.Since(began)); err != nil {
			return err
		}
	}
}

const (
	// showEvery is the least time between two reports that are written because rows were deleted, and showAnyway the most time between
	// two reports.
	showEvery  = 10 * time.Second
	showAnyway = time.Hour
)

// shownReport is the report in outbox_retention: that of the last pass over all rows, with what was deleted since.
type shownReport struct {
	report  Report
	text    string // of the report, without what changes from pass to pass
	changed bool   // something was deleted since it was written
	at      time.Time
}

// show writes the report if it says something new, and now and then anyway.
func (c *Cleaner) show(ctx context.Context, r *Report) error {
	s := &c.shown
	s.changed = s.changed || r.Changed()
	if r.FromStart {
		s.report = *r
	} else {
		s.report.follow(r)
	}
	same := s.report
	same.BeganAt, same.Seconds, same.Outbox.Deleted, same.Outbox.Unaccounted = time.Time{}, 0, 0, ""
	// The other rows that stay come and go all the time. With these somebody has something to do.
	same.Outbox.Kept = ledger.KeptRows{Unaccounted: same.Outbox.Kept.Unaccounted, Refused: same.Outbox.Kept.Refused}
	same.FromStart, same.Complete = true, true
	same.Bloat = withoutNumbers(same.Bloat)
	text, err := json.Marshal(&same)
	if err != nil {
		return err
	}
	since := time.Since(s.at)
	if ctx.Err() != nil || string(text) == s.text && since < showAnyway && !(s.changed && since >= showEvery) {
		return nil
	}
	full, err := json.Marshal(&s.report)
	if err != nil {
		return err
	}
	if err := c.cfg.Database.WriteReport(ctx, full); err != nil {
		if len(s.report.Grants) > 0 { // which says it
			return nil
		}
		return err
	}
	s.text, s.changed, s.at = string(text), false, time.Now()
	return nil
}
