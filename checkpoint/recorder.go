package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// maxBatchRows bounds the rows of one transaction: beyond some thousand, COPY gets no cheaper a row. A change of outbox_parked
// counts as parkedRows: it costs as much, and while a sink catches up thousands of them in one transaction would keep the
// other sinks' lanes waiting for theirs, which may have only so many batches unrecorded.
const (
	maxBatchRows = 8192
	parkedRows   = 4
)

// The least time between the starts of two transactions: while the stream is fast, and otherwise. Batches of some
// thousand rows cost half of what batches of a hundred do, those of a few rows ten times as much a row, and nobody but
// the slot waits for the recorder. calmPace is short enough for a lane not to use up its unrecorded batches.
const (
	fastPace = 20 * time.Millisecond
	calmPace = 10 * time.Millisecond
)

// Ledger is where batches are committed: PostgreSQL's tables, or a test's memory.
type Ledger interface {
	// Commit writes a batch in one transaction. After an error, whose outcome may be unknown, it is called again with the
	// same batch and finds out first whether that went through.
	Commit(ctx context.Context, b Batch) error
	Close()
}

// RecorderConfig is how the recorder is run. All of it is required.
type RecorderConfig struct {
	// Fast says that the stream is fast enough for pacing.
	Fast func() bool
	// State is told of a change between working (nil) and failing, and why. It is called by the recorder's goroutine.
	State  func(error)
	Logger *slog.Logger
}

// Recorder writes outcomes and the checkpoint to the ledger, a batch a transaction, and publishes the new prefix to
// the tracker after the COMMIT. It tries again until its context ends: nothing else can be done with outcomes.
type Recorder struct {
	ledger  Ledger
	cfg     RecorderConfig
	tracker *Tracker
	entries []uint64
}

// NewRecorder makes a recorder over a ledger, which it owns from then on. Close it when Run is not called.
func NewRecorder(ledger Ledger, cfg RecorderConfig) *Recorder {
	return &Recorder{ledger: ledger, cfg: cfg}
}

// Close ends what the ledger holds open.
func (r *Recorder) Close() { r.ledger.Close() }

// Run records until in is closed and empty, or ctx ends. It ends with an error when the session cannot go on: another
// one has taken over, or the server is shutting down.
func (r *Recorder) Run(ctx context.Context, tracker *Tracker, in <-chan Outcomes) error {
	defer r.Close()
	r.tracker = tracker
	var b collected
	var last time.Time
	for {
		clear(b.batch) // the array lives on; parked payloads must not
		b = collected{batch: b.batch[:0]}
		select {
		case o, ok := <-in:
			if !ok {
				return r.finish(ctx)
			}
			b.add(o)
		case <-tracker.Progress():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pace := calmPace
		if r.cfg.Fast() {
			pace = fastPace
		}
		b.collect(in, pace-time.Since(last))
		last = time.Now()
		if err := r.record(ctx, b.batch); err != nil {
			return err
		}
	}
}

// collected is what a batch is made of.
type collected struct {
	batch  []Outcomes
	rows   int // as maxBatchRows counts them
	urgent bool
	ended  bool // the channel is closed, which is seen again by whoever reads it next
}

func (c *collected) add(o Outcomes) {
	c.batch = append(c.batch, o)
	for i := range o.Rows {
		if o.Rows[i].Row == RowNone {
			c.rows++
		} else {
			c.rows += parkedRows
		}
	}
	c.urgent = c.urgent || o.Urgent
}

// collect takes what comes within this time, unless somebody waits, and then what is there.
func (c *collected) collect(in <-chan Outcomes, within time.Duration) {
	if within > 0 {
		t := time.NewTimer(within)
		defer t.Stop()
		for waiting := true; waiting && !c.urgent && !c.ended && c.rows < maxBatchRows; {
			select {
			case o, ok := <-in:
				if c.ended = !ok; ok {
					c.add(o)
				}
			case <-t.C:
				waiting = false
			}
		}
	}
	for !c.ended && c.rows < maxBatchRows {
		select {
		case o, ok := <-in:
			if c.ended = !ok; ok {
				c.add(o)
			}
		default:
			return
		}
	}
}

// finish writes what a keepalive allows to confirm, so that a clean stop leaves nothing to be sent again.
func (r *Recorder) finish(ctx context.Context) error { return r.record(ctx, nil) }

// record commits one batch, however often it has to be tried, and publishes what that settles.
func (r *Recorder) record(ctx context.Context, batch []Outcomes) error {
	r.entries = r.entries[:0]
	rows := 0
	for i := range batch {
		rows += len(batch[i].Rows)
		for j := range batch[i].Rows {
			if o := &batch[i].Rows[j]; o.Settles {
				r.entries = append(r.entries, o.Entry)
			}
		}
	}
	r.tracker.Settle(r.entries)
	mark := r.tracker.Settled()
	if rows > 0 || mark.LSN > r.tracker.Confirmed() {
		if err := r.commitBatch(ctx, Batch{batch, mark}); err != nil {
			return err
		}
		r.tracker.Publish(mark)
	}
	for i := range batch {
		tell(batch[i].Recorded, batch[i].Seq)
	}
	return nil
}

// tell leaves seq in the channel, in place of an older one that nobody has taken.
func tell(c chan uint64, seq uint64) {
	if c == nil {
		return
	}
	for {
		select {
		case c <- seq:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}

// commitBatch tries until the batch is committed, ctx ends, or the session cannot go on.
func (r *Recorder) commitBatch(ctx context.Context, b Batch) error {
	delay := 50 * time.Millisecond
	var last error // why the try before this one failed
	for {
		err := r.ledger.Commit(ctx, b)
		if err == nil {
			if last != nil {
				r.cfg.State(nil)
				r.cfg.Logger.Info("recorder works again")
			}
			return nil
		}
		switch cause := context.Cause(ctx); {
		case cause != nil && last != nil:
			return fmt.Errorf("outcomes not recorded: %w: %w", cause, last)
		case cause != nil:
			return fmt.Errorf("outcomes not recorded: %w", cause)
		}
		if errors.Is(err, ErrFenced) || ServerStopping(err) {
			return err
		}
		r.cfg.State(err)
		if last == nil {
			r.cfg.Logger.Warn("recorder tries again", "err", err)
		}
		last = err
		wait(ctx, delay)
		delay = min(2*delay, 5*time.Second)
	}
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
