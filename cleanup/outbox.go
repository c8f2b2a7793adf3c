package cleanup

import (
	"context"
	"errors"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/wait"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const (
	// chunkRows is the most rows of a chunk if the configuration does not say it.
	chunkRows = 1000
	// chunkPatience bounds the statement of a chunk.
	chunkPatience = 8 * time.Second
	// lockPatience is how long a chunk waits for the lock of a row. The rows that it has deleted until then are locked by it meanwhile.
	lockPatience = 100 * time.Millisecond
	// searchPatience bounds the search for the oldest row, which steps over what was deleted and is not vacuumed away. It reads only.
	searchPatience = time.Minute
	// busyMost and busyPause say for how long, and how often, a step is tried again because another session cleans up at that moment: a
	// command beside a connector, for example. Each of the two does a step at a time, and a connector rests in between. The longest step
	// takes searchPatience.
	busyMost  = searchPatience + 15*time.Second
	busyPause = 100 * time.Millisecond
	// fruitlessRows is after how many rows without any that may go a pass ends that does not look at all rows: what follows is younger, and
	// most probably not settled either.
	fruitlessRows = 3000
)

// Outbox is what a pass needs of the outbox: ledger.OutboxRows over a database, or a test's.
type Outbox interface {
	// DeleteChunk looks at the next rows that are old enough, and deletes those that may go.
	DeleteChunk(ctx context.Context, q ledger.ChunkQuery) (ledger.Chunk, error)
	// OldestRow looks for the first row that is old enough. If there is none, it returns the place before which there is none.
	OldestRow(ctx context.Context, q ledger.ChunkQuery) (at ledger.OutboxKey, found bool, err error)
	// Zoneless reports whether the rows' times have no time zone.
	Zoneless() bool
	// ByDay reports whether days of the outbox can be dropped.
	ByDay() bool
	// Days returns the days of which all rows are older than age, the oldest first.
	Days(ctx context.Context, age time.Duration) ([]ledger.OutboxDay, error)
	// DropDay drops a day with all of its rows, if they are these.
	DropDay(ctx context.Context, day ledger.OutboxDay, rows ledger.DayRows, patience time.Duration) (ledger.DayOutcome, string, error)
}

// place is where a walk over the rows of the outbox is.
type place struct {
	from  *ledger.OutboxKey // nil for the beginning of the table
	after bool              // the row from itself is left out
}

// walk is one way over the rows of the outbox.
type walk struct {
	outbox    Outbox
	query     ledger.ChunkQuery
	chunkRows int
	all       bool                                                // from the beginning, and not only what earlier passes have left
	most      int64                                               // after this many rows a dry run stops; 0 for no limit
	rest      func(ctx context.Context, took time.Duration) error // after each chunk
	deleted   func(rows int64)                                    // hears of each chunk
	report    *OutboxReport
	skipped   []ledger.OutboxDay // days ahead that it does not look at

	at        place
	lookedAt  time.Time // when the last chunk began: a row that was not old enough by then was not looked at
	limit     int
	fruitless int // rows since the last one that could go
	// waiting is the first row that stays and that the next walk should look at again.
	waiting *ledger.OutboxKey
	// logNeeded is the time of the oldest log row that is needed to delete a row later; the zero time if there is none.
	logNeeded time.Time
	// witness is for the next walk.
	witness ledger.Witness
	blocked string
}

// run walks until no row is old enough any more. It reports whether it has come that far.
func (w *walk) run(ctx context.Context) (complete bool, err error) {
	w.limit, w.lookedAt = w.chunkRows, time.Now()
	if w.all {
		found, err := w.begin(ctx)
		if err != nil || !found {
			return err == nil, err
		}
	}
	for {
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		var began time.Time
		var end bool
		err := w.inTurn(ctx, func() (err error) {
			began = time.Now()
			w.lookedAt = began
			end, err = w.step(ctx)
			return err
		})
		switch {
		case err != nil:
			return false, err
		case w.blocked != "":
			return false, nil
		case end && !w.hop():
			return true, nil
		case !w.all && w.fruitless >= fruitlessRows:
			return false, nil
		case w.most > 0 && w.report.Deleted+w.report.Kept.Total() >= w.most:
			w.report.More = true
			return false, nil
		}
		if err := w.rest(ctx, time.Since(began)); err != nil {
			return false, err
		}
	}
}

// begin looks for the first row, and reports whether there is one.
func (w *walk) begin(ctx context.Context) (found bool, err error) {
	q := w.query
	q.Patience = searchPatience
	var at ledger.OutboxKey
	err = w.inTurn(ctx, func() (err error) {
		at, found, err = w.outbox.OldestRow(ctx, q)
		return err
	})
	if err == nil {
		w.at = place{from: &at}
	}
	return found, err
}

// inTurn calls do, and again until no other session cleans up at the same moment, for busyMost.
func (w *walk) inTurn(ctx context.Context, do func() error) error {
	last := time.Now().Add(busyMost)
	for {
		err := do()
		if !errors.Is(err, ledger.ErrCleanupRuns) || !time.Now().Before(last) {
			return err
		}
		if err := wait.For(ctx, busyPause); err != nil {
			return err
		}
		if err := w.rest(ctx, 0); err != nil { // a command ends by it
			return err
		}
	}
}

// step does one chunk, and reports whether it was the last one.
func (w *walk) step(ctx context.Context) (end bool, err error) {
	q := w.query
	q.From, q.After, q.Limit = w.at.from, w.at.after, w.limit
	for len(w.skipped) > 0 && w.at.from != nil && w.at.from.At >= w.skipped[0].Until {
		w.hop()
	}
	if len(w.skipped) > 0 {
		q.Until = w.skipped[0].From
	}
	c, err := w.outbox.DeleteChunk(ctx, q)
	if err == nil && c.Kept.Refused > 0 {
		// A trigger has left out rows, or somebody else has deleted them at the same moment. The next look says which.
		w.note(&ledger.Chunk{Deleted: c.Deleted})
		c, err = w.outbox.DeleteChunk(ctx, q)
	}
	switch {
	case errors.Is(err, ledger.ErrRowLocked), errors.Is(err, ledger.ErrRowRefused), errors.Is(err, ledger.ErrChunkTooLong):
		if w.limit > 1 {
			w.limit /= 2 // to find the row that it is about
			return false, nil
		}
		return w.passOver(ctx, q, err)
	case err != nil:
		return false, err
	}
	if c.Kept.Refused > 0 {
		w.report.Refused = "a trigger or a rule of the table leaves rows out when they are deleted"
		c.LogNeeded = earlier(c.LogNeeded, c.Logged)
	}
	return w.went(&c), nil
}

// passOver goes past one row that cannot be deleted, and counts it by the error.
func (w *walk) passOver(ctx context.Context, q ledger.ChunkQuery, why error) (end bool, err error) {
	if errors.Is(why, ledger.ErrChunkTooLong) {
		return false, why
	}
	q.Explain = true
	c, err := w.outbox.DeleteChunk(ctx, q)
	if err != nil {
		return false, err
	}
	if c.Deleted > 0 {
		c.LogNeeded = earlier(c.LogNeeded, c.Logged)
		if errors.Is(why, ledger.ErrRowLocked) {
			c.Kept.Locked, c.Waiting = c.Deleted, c.Last
		} else {
			c.Kept.Refused, w.report.Refused = c.Deleted, why.Error()
		}
		c.Deleted = 0
	}
	return w.went(&c), nil
}

// went notes the result of a chunk and goes on behind its last row. It reports whether that was the last one.
func (w *walk) went(c *ledger.Chunk) (end bool) {
	if w.blocked = c.Blocked; c.Blocked != "" {
		return false
	}
	w.note(c)
	w.limit = min(w.limit*2, w.chunkRows)
	if c.Last == nil {
		return true
	}
	w.at = place{c.Last, true}
	return !c.Full
}

// note adds the result of a chunk.
func (w *walk) note(c *ledger.Chunk) {
	w.report.Deleted += c.Deleted
	w.report.Kept.Add(c.Kept)
	if w.report.Unaccounted == "" {
		w.report.Unaccounted = c.Unaccounted
	}
	if c.Deleted > 0 && !w.query.Explain {
		w.deleted(c.Deleted)
	}
	w.fruitless += int(c.Kept.Total())
	if c.Deleted > 0 || c.Kept.Beyond+c.Kept.Unread == 0 {
		w.fruitless = 0
	}
	if w.waiting == nil {
		w.waiting = c.Waiting
	}
	w.logNeeded = earlier(w.logNeeded, c.LogNeeded)
	if c.Decides || w.query.Witness.Snapshot == "" {
		w.witness = c.Witness
	}
}

// next is where the next walk begins.
func (w *walk) next() place {
	if w.waiting != nil {
		return place{from: w.waiting}
	}
	return w.at
}

// earlier returns the earlier one of two times, of which the zero time is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
