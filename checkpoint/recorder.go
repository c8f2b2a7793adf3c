package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

const (
	// maxBatchRows bounds the rows of one transaction. A COPY of more than some thousand rows gets no cheaper for each row.
	maxBatchRows = 8192
	// parkedWeight is how many rows a change of outbox_parked counts as, because it costs as much. While a sink catches up, thousands of
	// such changes in one transaction would make the lanes of other sinks wait: a lane may have only so many batches unrecorded.
	parkedWeight = 4
)

// The least time between the starts of two transactions, while the stream is fast (fastPace) and otherwise (calmPace). For each row a
// batch of some thousand rows costs half of what a batch of a hundred costs, and a batch of a few rows ten times as much. Usually only
// the slot waits for the recorder. calmPace is so short that no lane uses up its unrecorded batches.
const (
	fastPace = 20 * time.Millisecond
	calmPace = 10 * time.Millisecond
)

// Ledger is where batches are committed: PostgreSQL's tables, or a test's memory.
type Ledger interface {
	// Commit writes a batch in one transaction. After an error nobody may know whether the batch was committed. Then Commit is called
	// again with the same batch, and finds that out first. ErrFenced says that another session has taken over.
	Commit(ctx context.Context, b Batch) error
	// Close ends what the ledger holds open.
	Close()
}

// RecorderConfig is how the recorder is run. All of it is required.
type RecorderConfig struct {
	// Fast reports whether the stream is so fast that fastPace is right.
	Fast func() bool
	// State is called with nil when the recorder works, and with the error when it fails, at each change and each failed try. The
	// recorder's goroutine calls it.
	State  func(error)
	Logger *slog.Logger
}

// Recorder writes outcomes and the checkpoint to the ledger, one batch in a transaction, and publishes the new prefix to the tracker after
// the COMMIT. If a batch fails, it tries again until its context ends, because nothing else can be done with outcomes.
type Recorder struct {
	ledger  Ledger
	cfg     RecorderConfig
	tracker *Tracker
	entries []uint64
}

// NewRecorder makes a recorder, which owns the ledger from then on. The caller closes the recorder if it does not call Run.
func NewRecorder(ledger Ledger, cfg RecorderConfig) *Recorder {
	return &Recorder{ledger: ledger, cfg: cfg}
}

// Close ends what the ledger holds open.
func (r *Recorder) Close() { r.ledger.Close() }

// Run records until in is closed and empty, or ctx ends, and closes the ledger. It returns an error if the session cannot go on: another
// session has taken over, or the server is shutting down.
func (r *Recorder) Run(ctx context.Context, tracker *Tracker, in <-chan Outcomes) error {
	defer r.Close()
	r.tracker = tracker
	var b collected
	var last time.Time
	for {
		clear(b.batch) // the array is used again; parked payloads must not stay in memory
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

// collected are the outcomes of the next batch.
type collected struct {
	batch  []Outcomes
	rows   int // as maxBatchRows counts them
	urgent bool
	ended  bool // the channel is closed; the next receive of Run sees that again
}

func (c *collected) add(o Outcomes) {
	c.batch = append(c.batch, o)
	for i := range o.Rows {
		if o.Rows[i].Row == RowNone {
			c.rows++
		} else {
			c.rows += parkedWeight
		}
	}
	c.urgent = c.urgent || o.Urgent
}

// collect takes what comes within this time, unless an outcome is urgent, and then what is there already.
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

// finish writes a checkpoint for what a keepalive allows to confirm, so that PostgreSQL sends nothing again after a clean stop.
func (r *Recorder) finish(ctx context.Context) error { return r.record(ctx, nil) }

// record commits one batch, however often it has to be tried, and publishes what the batch settles.
func (r *Recorder) record(ctx context.Context, batch []Outcomes) error {
	r.entries = r.entries[:0]
	rows := 0
	for i := range batch {
		rows += batch[i].writes()
		for j := range batch[i].Rows {
			if o := &batch[i].Rows[j]; o.Settles {
				r.entries = append(r.entries, o.Entry)
			}
		}
	}
	r.tracker.Settle(r.entries)
	watermark := r.tracker.Settled()
	if rows > 0 || watermark.LSN > r.tracker.Confirmed() {
		if err := r.commitBatch(ctx, Batch{batch, watermark}); err != nil {
			return err
		}
		r.tracker.Publish(watermark)
	}
	for i := range batch {
		tell(batch[i].Recorded, batch[i].Seq)
	}
	return nil
}

// tell leaves seq in the channel, in place of an older value that nobody has received.
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
