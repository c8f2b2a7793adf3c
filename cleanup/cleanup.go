package cleanup

import (
	"context"
	"errors"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// metricsAge is how long windows of outbox_metrics are kept.
const metricsAge = 30 * 24 * time.Hour

// Database is what a pass needs of PostgreSQL: a ledger.Cleaner, or a test's.
type Database interface {
	// OpenOutbox looks at the outbox's columns and at our rights. grant is what the login lacks, "" if it lacks nothing.
	OpenOutbox(ctx context.Context) (outbox Outbox, grant string, err error)
	// DeleteMetrics deletes some windows of outbox_metrics that ended this long ago, and returns how many.
	DeleteMetrics(ctx context.Context, age time.Duration, limit int) (int64, error)
}

// Config describes a Cleaner. All fields are required unless their comment says otherwise.
type Config struct {
	Retention Retention
	Database  Database
	// Rest is called between two steps with the time that the last one took. Its error ends the pass. It may be nil.
	Rest func(ctx context.Context, took time.Duration) error
	// Deleted hears of each step that has deleted rows of a table. It may be nil.
	Deleted func(table string, rows int64)
}

// Cleaner makes passes. It remembers between them how far it has looked, so that a pass does not look again at what stays for long. For
// one goroutine at a time.
type Cleaner struct {
	cfg Config
	at  place
	// fullAt is when the next pass from the beginning is due.
	fullAt  time.Time
	witness ledger.Witness
}

// New makes a Cleaner.
func New(cfg Config) *Cleaner {
	if cfg.Rest == nil {
		cfg.Rest = func(context.Context, time.Duration) error { return nil }
	}
	if cfg.Deleted == nil {
		cfg.Deleted = func(string, int64) {}
	}
	return &Cleaner{cfg: cfg}
}

const (
	// fullEvery and fullRest say how often a pass looks at all old rows: not more often than fullEvery, and with a rest of so many times
	// what the last one took. Only such a pass finds rows with old times that were committed late.
	fullEveryMost  = time.Hour
	fullEveryLeast = time.Minute
	fullRest       = 20
)

// fullEvery is how often a pass looks at all old rows.
func (c *Cleaner) fullEvery() time.Duration {
	return min(max(c.cfg.Retention.Outbox/10, fullEveryLeast), fullEveryMost)
}

// Pass deletes what is old enough and may go. Its report is complete also if there is an error, which says why the pass has ended early:
// it stands in the report as well.
func (c *Cleaner) Pass(ctx context.Context) (Report, error) {
	began := time.Now()
	r := Report{BeganAt: began, FromStart: !began.Before(c.fullAt)}
	r.Outbox.Retention, r.Log.Retention = seconds(c.cfg.Retention.Outbox), seconds(c.cfg.Retention.Ledger)
	complete, err := c.deleteAll(ctx, &r)
	r.Complete = complete && err == nil
	if r.FromStart && (r.Complete || err != nil) {
		c.fullAt = time.Now().Add(max(c.fullEvery(), fullRest*time.Since(began)))
	}
	if err != nil {
		r.Error = err.Error()
	}
	r.Seconds = time.Since(began).Seconds()
	return r, err
}

// DryRun looks at what a pass would do. It looks at no more than most rows of the outbox.
func (c *Cleaner) DryRun(ctx context.Context, most int64) (Report, error) {
	began := time.Now()
	r := Report{BeganAt: began, DryRun: true, FromStart: true}
	r.Outbox.Retention, r.Log.Retention = seconds(c.cfg.Retention.Outbox), seconds(c.cfg.Retention.Ledger)
	complete, err := c.outbox(ctx, &r, most)
	r.Complete = complete && err == nil
	if err != nil {
		r.Error = err.Error()
	}
	r.Seconds = time.Since(began).Seconds()
	return r, err
}

func (c *Cleaner) deleteAll(ctx context.Context, r *Report) (complete bool, err error) {
	complete, err = c.outbox(ctx, r, 0)
	if err != nil || r.Blocked != "" {
		return false, err
	}
	if !r.FromStart {
		return complete, nil
	}
	return complete, c.metrics(ctx, r)
}

// outbox deletes rows of the outbox.
func (c *Cleaner) outbox(ctx context.Context, r *Report, most int64) (complete bool, err error) {
	if c.cfg.Retention.Outbox == Forever {
		return true, nil
	}
	outbox, grant, err := c.cfg.Database.OpenOutbox(ctx)
	if err != nil {
		return false, err
	}
	if grant != "" {
		r.Grants = append(r.Grants, grant)
		if !r.DryRun {
			return false, nil
		}
	}
	w := &walk{
		outbox: outbox, all: r.FromStart, most: most, rest: c.cfg.Rest, report: &r.Outbox, at: c.at,
		deleted: func(rows int64) { c.cfg.Deleted("event_outbox", rows) },
		query: ledger.ChunkQuery{
			Age: c.cfg.Retention.Outbox, Witness: c.witness, Patience: chunkPatience, LockPatience: lockPatience, Explain: r.DryRun,
		},
	}
	if w.all {
		q := w.query
		q.Patience = searchPatience
		oldest, found, err := outbox.OldestRow(ctx, q)
		if err != nil {
			return false, err
		}
		w.at = place{from: &oldest}
		if !found {
			c.at = w.at
			return true, nil
		}
	}
	complete, err = w.run(ctx)
	r.Blocked = w.blocked
	if r.DryRun {
		return complete, err
	}
	c.at, c.witness = w.next(), w.witness
	if errors.Is(err, ledger.ErrMayNotDelete) {
		r.Grants = append(r.Grants, err.Error())
		return false, nil
	}
	return complete, err
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
