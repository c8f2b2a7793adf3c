package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

// maxBatchRows bounds the rows of one transaction: beyond some thousand, COPY gets no cheaper a row.
const maxBatchRows = 8192

// The least time between the starts of two transactions: while the stream is fast, and otherwise. Batches of some
// thousand rows cost half of what batches of a hundred do, those of a few rows ten times as much a row, and nobody but
// the slot waits for the recorder. calmPace is short enough for a lane not to use up its unrecorded batches.
const (
	fastPace = 20 * time.Millisecond
	calmPace = 10 * time.Millisecond
)

// RecorderConfig is what a Recorder needs. All of it is required.
type RecorderConfig struct {
	// Connect opens the recorder's own connection, with the ledger's search_path, a lock_timeout and
	// synchronous_commit = on: without it a crash could keep the slot's position and lose the rows before it.
	Connect func(context.Context) (*pgx.Conn, error)
	Slot    string
	Owner   string // who we are, for people who look at the checkpoint
	// Fast says that the stream is fast enough for pacing.
	Fast func() bool
	// State is told of a change between working (nil) and failing, and why. It is called by the recorder's goroutine.
	State  func(error)
	Logger *slog.Logger
}

// Recorder writes outcomes and the checkpoint to the ledger, a batch a transaction, and publishes the new prefix to
// the tracker after the COMMIT. It tries again until its context ends: nothing else can be done with outcomes.
//
// A COMMIT whose answer is lost may have gone through or not. The checkpoint's batch_seq, which every transaction
// raises by one, tells after reconnecting.
type Recorder struct {
	cfg     RecorderConfig
	conn    *pgx.Conn
	tracker *Tracker
	epoch   int32
	seq     int64 // batch_seq of the last batch that is known to be committed
	uuidIDs bool
	clock   time.Duration // PostgreSQL's clock minus ours
	buf     []byte
	entries []uint64
	ready   bool // the connection knows our statements
}

// OpenRecorder connects, takes the ledger over by raising the epoch, and reads what is settled. The caller must hold
// the slot: START_REPLICATION has succeeded. Close the recorder when Run is not called.
func OpenRecorder(ctx context.Context, cfg RecorderConfig) (*Recorder, Start, error) {
	r := &Recorder{cfg: cfg}
	if err := r.connect(ctx); err != nil {
		return nil, Start{}, err
	}
	start, err := r.open(ctx)
	if err != nil {
		r.Close()
		return nil, Start{}, err
	}
	return r, start, nil
}

// Close ends the connection.
func (r *Recorder) Close() {
	if r.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = r.conn.Close(ctx) // there is nothing to lose: what matters was committed
	r.conn = nil
}

func (r *Recorder) connect(ctx context.Context) error {
	conn, err := r.cfg.Connect(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	r.Close()
	r.conn, r.ready = conn, false
	err = conn.QueryRow(ctx, `select atttypid = 'uuid'::regtype from pg_attribute
		where attrelid = 'outbox_delivery_log'::regclass and attname = 'event_id'`).Scan(&r.uuidIDs)
	if err != nil {
		return fmt.Errorf("look at the ledger: %w", err)
	}
	return r.measureClock(ctx)
}

// Run records until in is closed and empty, or ctx ends. It ends with an error when the session cannot go on: another
// one has taken over, or the server is shutting down.
func (r *Recorder) Run(ctx context.Context, tracker *Tracker, in <-chan Outcomes) error {
	defer r.Close()
	r.tracker = tracker
	var batch []Outcomes
	var last time.Time
	for {
		batch = batch[:0]
		rows := 0
		select {
		case o, ok := <-in:
			if !ok {
				return r.finish(ctx)
			}
			batch, rows = append(batch, o), len(o.Rows)
		case <-tracker.Progress():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pace := calmPace
		if r.cfg.Fast() {
			pace = fastPace
		}
		wait(ctx, pace-time.Since(last))
		last = time.Now()
		for more := true; more && rows < maxBatchRows; {
			select {
			case o, ok := <-in:
				if more = ok; ok { // a closed channel is seen again above
					batch, rows = append(batch, o), rows+len(o.Rows)
				}
			default:
				more = false
			}
		}
		if err := r.record(ctx, batch); err != nil {
			return err
		}
	}
}

// finish writes what a keepalive allows to confirm, so that a clean stop leaves nothing to be sent again.
func (r *Recorder) finish(ctx context.Context) error { return r.record(ctx, nil) }

// record commits one batch, however often it has to be tried, and publishes what that settles.
func (r *Recorder) record(ctx context.Context, batch []Outcomes) error {
	r.entries = r.entries[:0]
	for i := range batch {
		for j := range batch[i].Rows {
			if o := &batch[i].Rows[j]; o.Status != Failed {
				r.entries = append(r.entries, o.Entry)
			}
		}
	}
	r.tracker.Settle(r.entries)
	mark := r.tracker.Settled()
	if len(batch) == 0 && mark.LSN <= r.tracker.Confirmed() {
		return nil
	}
	if err := r.commitBatch(ctx, batch, mark); err != nil {
		return err
	}
	r.tracker.Publish(mark)
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
func (r *Recorder) commitBatch(ctx context.Context, batch []Outcomes, mark Mark) error {
	delay := 50 * time.Millisecond
	for failed := false; ; failed = true {
		err := r.attempt(ctx, batch, mark)
		if err == nil {
			r.seq++
			if failed {
				r.cfg.State(nil)
				r.cfg.Logger.Info("recorder works again")
			}
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("outcomes not recorded: %w", context.Cause(ctx))
		}
		if errors.Is(err, ErrFenced) || ServerStopping(err) {
			return err
		}
		r.cfg.State(err)
		if !failed {
			r.cfg.Logger.Warn("recorder tries again", "err", err)
		}
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
