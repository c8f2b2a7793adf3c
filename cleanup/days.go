package cleanup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	// wholeDay is the least retention with which the rows of a day stay until all of them are old enough, and then go at once.
	wholeDay = 24 * time.Hour
	// lookRows is the most rows of a step that looks at a day. It locks nothing.
	lookRows = 5000
	// countPatience bounds the time in which the rows of a day are counted before it is dropped.
	countPatience = 10 * time.Minute
	// dayPatience is how long a day waits for those who use it. After that its rows are deleted one by one, beside them.
	dayPatience = 6 * time.Hour
)

// oldDay is what a Cleaner knows of a partition whose rows are all old enough.
type oldDay struct {
	rows     ledger.DayRows
	logged   time.Time // of the oldest log row of its rows
	lookedAt time.Time // when all of its rows were found to go; the zero time before that
	left     bool      // its rows are deleted one by one, if there are any
}

// dropDays drops the days of which all rows may go. Those that wait for somebody are left out of the walk.
func (c *Cleaner) dropDays(ctx context.Context, w *walk, r *Report) error {
	if !w.outbox.ByDay() {
		return nil
	}
	days, err := w.outbox.Days(ctx, w.query.Age)
	if err != nil {
		return err
	}
	known := map[uint32]*oldDay{}
	for _, day := range days {
		if d := c.days[day.OID]; d != nil && !r.DryRun && (!r.FromStart || !d.left) {
			known[day.OID] = d
		} else {
			known[day.OID] = &oldDay{}
		}
	}
	if !r.DryRun {
		c.days = known
	}
	for _, day := range days {
		d := known[day.OID]
		if !d.left && d.lookedAt.IsZero() {
			blocked, err := w.look(ctx, day, d)
			if err != nil || blocked {
				return err
			}
		}
		if d.left {
			continue
		}
		if err := w.drop(ctx, day, d); err != nil {
			return err
		}
	}
	return nil
}

// look looks at the rows of a day, until one has to stay. It reports whether nothing may be deleted at all, which ends it as well.
func (w *walk) look(ctx context.Context, day ledger.OutboxDay, d *oldDay) (blocked bool, err error) {
	q := w.query
	q.From, q.Until, q.Limit, q.Explain = &ledger.OutboxKey{At: day.From}, day.Until, lookRows, true
	*d = oldDay{}
	for {
		began := time.Now()
		var chunk ledger.Chunk
		err := w.inTurn(ctx, func() (err error) {
			chunk, err = w.outbox.DeleteChunk(ctx, q)
			return err
		})
		switch {
		case errors.Is(err, ledger.ErrChunkTooLong) && q.Limit > chunkRows:
			q.Limit = chunkRows
			continue
		case err != nil:
			return false, err
		case chunk.Blocked != "":
			return true, nil
		}
		d.rows.Rows, d.rows.Hash = d.rows.Rows+chunk.Deleted, d.rows.Hash^chunk.Hash
		d.logged = earlier(d.logged, chunk.Logged)
		switch {
		case chunk.Kept.Total() > 0:
			d.left = true
			w.stays(day, "not all of its rows may go; they are deleted one by one")
			return false, nil
		case w.most > 0 && w.report.Deleted+d.rows.Rows >= w.most: // the walk counts that many
			d.left = true
			return false, nil
		case !chunk.Full || chunk.Last == nil:
			d.lookedAt = time.Now()
			d.left = d.rows.Rows == 0 // an empty one is dropped by ledger.KeepOutboxPartitions
			return false, nil
		}
		q.From, q.After = chunk.Last, true
		if err := w.rest(ctx, time.Since(began)); err != nil {
			return false, err
		}
	}
}

// drop drops a day of which all rows may go.
func (w *walk) drop(ctx context.Context, day ledger.OutboxDay, d *oldDay) error {
	outcome, reason := ledger.DayDropped, ""
	if !w.query.Explain {
		err := w.inTurn(ctx, func() (err error) {
			outcome, reason, err = w.outbox.DropDay(ctx, day, d.rows, countPatience)
			return err
		})
		if err != nil {
			return err
		}
	}
	switch outcome {
	case ledger.DayDropped:
		p := &w.report.Partitions
		p.Dropped, p.Bytes = append(p.Dropped, day.Name), p.Bytes+day.Bytes
		w.report.Deleted += d.rows.Rows
		if w.query.Explain {
			w.skipped = append(w.skipped, day)
		} else {
			w.deleted(d.rows.Rows)
			d.left = true
		}
	case ledger.DayBusy, ledger.DayHeld:
		w.stays(day, string(outcome)+": "+reason)
		if time.Since(d.lookedAt) >= dayPatience {
			d.left = true
			return nil
		}
		w.skipped = append(w.skipped, day)
		w.logNeeded = earlier(w.logNeeded, d.logged)
	case ledger.DayChanged, ledger.DayRefused:
		d.left = true
		w.stays(day, string(outcome)+": "+reason+"; its rows are deleted one by one")
	default:
		return fmt.Errorf("drop %s: unknown outcome %q", day.Name, outcome)
	}
	return nil
}

// stays notes why a day stays.
func (w *walk) stays(day ledger.OutboxDay, why string) {
	if p := &w.report.Partitions; p.Stays == "" {
		p.Stays = day.Name + ": " + why
	}
}

// hop goes behind the next day that is left out. It reports whether there was one.
func (w *walk) hop() bool {
	if len(w.skipped) == 0 {
		return false
	}
	if until := w.skipped[0].Until; w.at.from == nil || w.at.from.At < until { // both are times in UTC
		w.at = place{from: &ledger.OutboxKey{At: until}}
	}
	w.skipped = w.skipped[1:]
	return true
}
