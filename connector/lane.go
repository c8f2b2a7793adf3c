package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// maxUnrecorded is how many batches of a lane may be delivered and not yet recorded: what a crash can repeat.
	maxUnrecorded = 8
	// deliverPace is the least time between two Deliver calls while the stream is fast, unless a whole batch waits:
	// a thousand small requests cost more than everything else.
	deliverPace = 3 * time.Millisecond
	// awayPace is the most that is waited before a destination that is away is asked again: what it costs is one request, and
	// what it saves is minutes in which everything waits for a destination that is back.
	awayPace = 10 * time.Second
)

// lane owns the order of a share of a sink's aggregates. It is an actor: it never sleeps and never blocks on the sink;
// Deliver runs beside it, one at a time. What was not accepted is tried again in place, before anything later, so the
// order of an aggregate is the order of one queue.
type lane struct {
	sink     sinks.Sink
	name     string // of the sink
	id       int32  // of the sink's processor
	number   int
	oneTry   bool // what is not accepted at once is discarded
	delivery Delivery
	state    *sinkState
	metrics  monitoring.SinkMetrics
	fast     func() bool
	logger   *slog.Logger

	in       chan []*delivery           // from the reader, which closes it
	out      chan<- checkpoint.Outcomes // to the recorder
	recorded chan uint64                // from the recorder: everything up to this Seq is committed

	pending  []*delivery // arrived, in order
	again    []*delivery // delivered before and not accepted: goes first
	retryAt  time.Time   // when again may be tried
	away     bool        // the last Deliver reached nobody: one message asks whether that has changed
	running  []*delivery // what Deliver has; nil when none runs
	done     chan result
	started  time.Time
	batch    []sinks.Message // reused: Deliver does not keep it
	noAnswer error           // why a Deliver ends that takes too long
	given    uint64          // Seq of the last outcomes
	commit   uint64          // Seq of the last that are committed
	closing  bool
	timer    *time.Timer
}

type result struct {
	errs               []error
	started, completed time.Time
}

func newLane(l lane) *lane {
	// The reader hands over up to handOver deliveries a time; two more slots let it go on while the lane is at work.
	l.in = make(chan []*delivery, 2)
	l.recorded = make(chan uint64, 1)
	l.done = make(chan result, 1) // Deliver's goroutine never waits for the lane
	l.noAnswer = fmt.Errorf("no answer within delivery.timeout %s", l.delivery.Timeout)
	return &l
}

// run ends when in is closed and nothing is on the wire any more, or with work. What was not delivered then is
// delivered by the next session: the slot has not moved past it. deliver is the context of Deliver calls.
func (l *lane) run(work, deliver context.Context) error {
	l.timer = time.NewTimer(time.Hour)
	defer l.timer.Stop()
	in := l.in
	for {
		wake := l.start(deliver, time.Now())
		if l.closing && l.running == nil {
			return nil
		}
		l.timer.Reset(wake)
		select {
		case batch, ok := <-in:
			if !ok {
				in, l.closing = nil, true
				continue
			}
			l.pending = append(l.pending, batch...)
		case res := <-l.done:
			if err := l.finish(work, deliver, res); err != nil {
				return err
			}
		case seq := <-l.recorded:
			l.commit = seq
		case <-l.timer.C:
		case <-work.Done():
			return context.Cause(work)
		}
	}
}

// start starts a Deliver if it may, and otherwise says when to look again at the latest.
func (l *lane) start(ctx context.Context, now time.Time) time.Duration {
	if l.running != nil || l.closing || l.given-l.commit >= maxUnrecorded || ctx.Err() != nil {
		return time.Hour // a result, the recorder, or the end of the session will wake us
	}
	list, most := &l.pending, l.delivery.BatchSize
	if l.away {
		most = 1 // each try of each message is a row in the ledger
	}
	if len(l.again) > 0 {
		if wait := l.retryAt.Sub(now); wait > 0 {
			return wait
		}
		list = &l.again
	} else if len(l.pending) < l.delivery.BatchSize && l.fast() {
		if wait := l.started.Add(deliverPace).Sub(now); wait > 0 && len(l.pending) > 0 {
			return wait
		}
	}
	n := min(len(*list), most)
	if n == 0 {
		return time.Hour
	}
	l.running = (*list)[:n:n]
	if *list = (*list)[n:]; len(*list) == 0 {
		*list = nil
	}
	l.batch = l.batch[:0]
	for _, d := range l.running {
		d.Attempt = d.tries + 1
		l.batch = append(l.batch, d.Message)
	}
	l.started = now
	go l.deliver(ctx, l.batch)
	return time.Hour
}

func (l *lane) deliver(ctx context.Context, batch []sinks.Message) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.delivery.Timeout, l.noAnswer)
	defer cancel()
	res := result{started: time.Now()}
	res.errs = l.sink.Deliver(ctx, batch)
	res.completed = time.Now()
	l.done <- res
}

// finish gives the outcomes of a Deliver to the recorder and puts what was not accepted at the head of the queue.
func (l *lane) finish(work, deliver context.Context, res result) error {
	running := l.running
	l.running = nil
	defer clear(running) // the queue's array lives on; what was settled must not
	if res.errs != nil && len(res.errs) != len(running) {
		return fmt.Errorf("sink %q gave %d results for %d messages", l.name, len(res.errs), len(running))
	}
	rows := make([]checkpoint.Outcome, 0, len(running))
	var again []*delivery
	var cause, refusal error // what is to be tried again, and what was not accepted at all
	tries := 0
	for i, d := range running {
		var err error
		if res.errs != nil {
			err = res.errs[i]
		}
		if errors.Is(err, sinks.ErrNotAttempted) {
			again = append(again, d)
			continue
		}
		o := checkpoint.Outcome{
			Entry: d.entry, Processor: l.id, Position: d.position(), EventID: d.Event.ID,
			StartedAt: res.started, CompletedAt: res.completed,
		}
		o.Status = l.judge(d, err, res.started)
		o.Attempt = d.tries
		if err != nil {
			o.Error = err.Error()
		}
		switch o.Status {
		case checkpoint.Delivered:
			l.metrics.Duration.Observe(max(0, res.completed.Sub(d.CommitTime).Seconds()))
		case checkpoint.Dead:
			o.Dead = d.deadLetter()
			l.metrics.Dead.Inc()
			l.logger.Error("dead letter", "sink", l.name, "lane", l.number, "event_id", d.Event.ID,
				"aggregate_type", d.Event.AggregateType, "attempt", d.tries, "err", err)
		case checkpoint.Discarded:
			l.metrics.Discarded.Inc()
			refusal = err
		case checkpoint.Failed:
			l.metrics.Failed.Inc()
			refusal = err
			again = append(again, d)
			cause, tries = err, max(tries, d.tries)
		}
		rows = append(rows, o)
	}
	delivered := len(rows)
	for i := range rows {
		if rows[i].Status != checkpoint.Delivered {
			delivered--
		}
	}
	l.metrics.Delivered.Add(float64(delivered))
	if len(again) > 0 {
		l.again = append(again, l.again...)
	}
	l.away = delivered == 0 && errors.Is(cause, sinks.ErrUnavailable)
	l.retryAt = time.Time{} // what stood behind a dead letter goes on at once
	if cause != nil {
		wait := l.delivery.Retry.delay(tries)
		if l.away {
			wait = min(wait, awayPace)
		}
		l.retryAt = res.completed.Add(wait)
	}
	if deliver.Err() == nil { // else the session has ended it, which says nothing of the sink
		l.state.report(l.number, refusal)
	}
	return l.give(work, rows)
}

// judge counts the try and says what it came to.
func (l *lane) judge(d *delivery, err error, started time.Time) checkpoint.Status {
	d.tries++
	if d.triedAt.IsZero() {
		d.triedAt = started
	}
	maxRetries := l.delivery.MaxRetries
	if d.Event.MaxRetries != nil {
		maxRetries = *d.Event.MaxRetries
	}
	switch {
	case err == nil:
		return checkpoint.Delivered
	case l.oneTry:
		return checkpoint.Discarded
	case errors.Is(err, sinks.ErrPermanent):
		d.attempts++
		return checkpoint.Dead
	case errors.Is(err, sinks.ErrUnavailable):
		return checkpoint.Failed // an outage is no fault of the message
	}
	d.attempts++
	if d.attempts > maxRetries {
		return checkpoint.Dead
	}
	return checkpoint.Failed
}

// give hands outcomes to the recorder. The channel has room for all that lanes may have unrecorded.
func (l *lane) give(work context.Context, rows []checkpoint.Outcome) error {
	if len(rows) == 0 {
		return nil
	}
	l.given++
	select {
	case l.out <- checkpoint.Outcomes{Rows: rows, Seq: l.given, Recorded: l.recorded}:
		return nil
	case <-work.Done():
		return context.Cause(work)
	}
}
