package connector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// finish evaluates what a Deliver has answered, and gives the outcomes to the recorder. A message that was not accepted is parked
// until it is due again, and holds its aggregate. In place it goes back to the head of the lane's queue.
func (l *lane) finish(work, deliver context.Context, res result) error {
	r := l.running
	l.running = nil
	clear(l.batch) // both arrays live on; the events must not
	defer clear(r.messages)
	if res.errs == nil {
		res.errs = l.noErrors(len(r.messages))
	}
	if len(res.errs) != len(r.messages) {
		return fmt.Errorf("sink %q gave %d results for %d messages", l.name, len(res.errs), len(r.messages))
	}
	f := finishing{lane: l, result: res, probe: r.probe, rows: make([]checkpoint.Outcome, 0, len(r.messages))}
	v := survey(r.messages, res.errs)
	v.ended, v.probe = deliver.Err() != nil, r.probe
	f.verdict, f.closed = v, l.breaker.closed.Load()
	for i, d := range r.messages {
		f.message(d, res.errs[i])
	}
	l.breaker.judge(v)
	f.counts.Delivered = int64(f.verdict.accepted)
	l.state.answered(answer{lane: l.number, counts: f.counts, cause: f.cause, ended: f.verdict.ended})
	if len(f.inHand) > 0 {
		l.inHand = append(f.inHand, l.inHand...)
	}
	l.away = f.verdict.accepted == 0 && errors.Is(f.cause, sinks.ErrUnavailable)
	l.retryAt = time.Time{} // without a pause, what stood behind a dead letter goes on at once
	if f.pause > 0 {
		l.retryAt = res.completed.Add(f.pause)
	}
	if len(f.rows) == 0 {
		return nil
	}
	err := l.give(work, checkpoint.Outcomes{Rows: f.rows, Urgent: !l.live && len(l.rows) == 0})
	l.deliveredSeq = l.givenSeq
	if f.died {
		l.diedSeq = l.givenSeq
	}
	l.unrecorded = append(l.unrecorded, unrecorded{l.givenSeq, len(f.rows)})
	return err
}

// noErrors returns a nil for each of n messages.
func (l *lane) noErrors(n int) []error {
	if cap(l.nils) < n {
		l.nils = make([]error, n)
	}
	return l.nils[:n]
}

// survey counts what the answers to one Deliver say of the destination.
func survey(messages []*delivery, errs []error) verdict {
	var v verdict
	for i, d := range messages {
		v.news = v.news || d.tries == 0 && !d.due && !errors.Is(errs[i], sinks.ErrNotAttempted)
		switch err := errs[i]; {
		case err == nil:
			v.accepted++
		case errors.Is(err, sinks.ErrNotAttempted):
		case errors.Is(err, sinks.ErrUnavailable):
			v.away++
		default:
			v.answered++
		}
	}
	return v
}

// finishing evaluates the results of one Deliver, message by message.
type finishing struct {
	*lane
	result
	verdict verdict
	closed  bool // the breaker was closed when the answers came
	probe   bool // the Deliver asked whether the destination is back
	rows    []checkpoint.Outcome
	inHand  []*delivery   // tried again in place
	pause   time.Duration // how long inHand waits before that
	cause   error         // the last failure
	died    bool          // a message died in place, or was discarded
	counts  monitoring.Counts
}

func (f *finishing) message(d *delivery, err error) {
	if d.discarded {
		return
	}
	if errors.Is(err, sinks.ErrNotAttempted) {
		f.notAttempted(d, err)
		return
	}
	d.tries++
	if d.triedAt.IsZero() {
		d.triedAt = f.result.started
	}
	if err == nil {
		f.budget.accepted()
		f.duration.Observe(max(0, f.completed.Sub(d.CommitTime).Seconds()))
		f.record(d, checkpoint.Delivered, nil)
		return
	}
	f.cause = err
	if f.oneTry {
		f.died = true
		f.counts.Discarded++
		f.record(d, checkpoint.Discarded, err)
		return
	}
	switch dies, spared := f.dies(d, err); {
	case dies:
		f.counts.Dead++
		f.logger.Error("dead letter", "sink", f.name, "lane", f.number, "event_id", d.Event.ID,
			"aggregate_type", d.Event.AggregateType, "attempt", d.tries, "err", err)
		// Otherwise what stands behind it goes on in place.
		holds := !f.inPlace() || d.row || f.delivery.DeadBlocks
		o := f.record(d, checkpoint.Dead, err)
		o.Parked.Blocks = f.delivery.DeadBlocks
		if holds {
			f.hold(d.hash, f.completed)
		} else {
			f.died = true
		}
	case f.inPlace() && !d.row && !spared:
		f.counts.Failed++
		f.add(d.triedInPlace(f.id, checkpoint.Failed), err)
		f.inHand = append(f.inHand, d)
		f.pause = max(f.pause, f.delayInPlace(d, err))
	default:
		f.counts.Failed++
		o := f.record(d, checkpoint.Failed, err)
		o.Parked.NextAttempt = f.completed.Add(f.delay(d, err))
		f.hold(d.hash, o.Parked.NextAttempt)
	}
}

// notAttempted handles a message that the sink has not begun: an earlier message of its aggregate failed, or the sink had no time
// left. In the latter case the message becomes due at once and does not stay fresh. Messages that are never answered, and fill each
// batch, would otherwise keep out those that stand behind them for good.
func (f *finishing) notAttempted(d *delivery, err error) {
	_, held := f.held[d.hash]
	switch {
	case f.inPlace() && !d.row:
		f.inHand = append(f.inHand, d)
		return
	case d.row && (held || d.due): // its row stays in the table, at its place
	case held:
		f.record(d, checkpoint.Parked, nil)
	default:
		f.record(d, checkpoint.Parked, err).Parked.NextAttempt = f.completed
	}
	if !held {
		f.hold(d.hash, f.completed)
	}
}

// record adds the outcome of a delivery that the lane has done with, or parks. The pointer is valid until the next outcome is added.
func (f *finishing) record(d *delivery, status checkpoint.Status, err error) *checkpoint.Outcome {
	o := d.outcome(f.id, status)
	if o.Row == checkpoint.RowInsert {
		f.floor.parked(d.position())
	}
	return f.add(o, err)
}

func (f *finishing) add(o checkpoint.Outcome, err error) *checkpoint.Outcome {
	o.StartedAt, o.CompletedAt = f.result.started, f.completed
	if err != nil {
		o.Error = storedText(err)
	}
	f.rows = append(f.rows, o)
	return &f.rows[len(f.rows)-1]
}

// dies counts an attempt if this failure uses one, and reports whether the message is given up. spared says that it should be,
// and that the sink's death budget is used up.
func (f *finishing) dies(d *delivery, err error) (dies, spared bool) {
	giveUp := f.delivery.GiveUpAfter
	retries := f.delivery.MaxRetries
	if d.Event.MaxRetries != nil {
		retries = *d.Event.MaxRetries
	}
	// An outage is no fault of the message.
	refused := !errors.Is(err, sinks.ErrUnavailable) && !errors.Is(err, sinks.ErrTopicUnavailable)
	switch {
	case refused && (errors.Is(err, sinks.ErrPermanent) || d.attempts >= retries):
	case giveUp > 0 && !f.verdict.ended && f.completed.Sub(d.triedAt) > giveUp && f.closed:
	case refused:
		d.attempts++
		return false, false
	default:
		return false, false
	}
	if !f.budget.mayDie() {
		return false, true
	}
	if refused {
		d.attempts++
	}
	return true, false
}

// delay is how long to wait before the next try of a parked message.
func (f *finishing) delay(d *delivery, err error) time.Duration {
	return f.probeDelay(f.backoff(d, err))
}

// delayInPlace is how long to wait before the next try of a message that stays in the lane's hands. A destination that is away is
// asked again after awayPace at the latest.
func (f *finishing) delayInPlace(d *delivery, err error) time.Duration {
	wait := f.backoff(d, err)
	if errors.Is(err, sinks.ErrUnavailable) && f.verdict.accepted == 0 {
		wait = min(wait, awayPace)
	}
	return f.probeDelay(wait)
}

func (f *finishing) backoff(d *delivery, err error) time.Duration {
	if after := sinks.RetryAfter(err); after > 0 { // the destination knows best
		return min(after, f.delivery.Retry.Max)
	}
	return f.delivery.Retry.delay(d.tries)
}

// probeDelay makes a failed probe wait so long that the next probe is a message of another aggregate.
func (f *finishing) probeDelay(wait time.Duration) time.Duration {
	if f.probe {
		wait = max(wait, 2*f.breaker.cfg.ResetTimeout)
	}
	return wait
}

// discard gives up a delivery of a sink that is tried once, because the sink is not asked or not waited for now.
func (l *lane) discard(d *delivery) {
	o := d.outcome(l.id, checkpoint.Discarded)
	o.StartedAt = time.Now()
	o.CompletedAt, o.Error = o.StartedAt, "the sink is away, slow or paused"
	d.discarded = true
	l.parks = append(l.parks, o)
	l.state.discarded()
}
