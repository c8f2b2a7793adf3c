package connector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// finish gives the outcomes of a Deliver to the recorder. What was not accepted is parked, to be tried again when it is due,
// and holds its aggregate; in place it goes to the head of the queue.
func (l *lane) finish(work, deliver context.Context, res result) error {
	w := l.running
	l.running = nil
	clear(l.batch) // both arrays live on; the events must not
	defer clear(w.messages)
	if res.errs == nil {
		res.errs = l.noErrors(len(w.messages))
	}
	if len(res.errs) != len(w.messages) {
		return fmt.Errorf("sink %q gave %d results for %d messages", l.name, len(res.errs), len(w.messages))
	}
	f := finishing{lane: l, result: res, probe: w.claim.probe, rows: make([]checkpoint.Outcome, 0, len(w.messages))}
	f.ended = deliver.Err() != nil
	f.verdict = l.breaker.weigh(survey(w.messages, res.errs))
	for i, d := range w.messages {
		f.message(d, res.errs[i])
	}
	f.verdict.judge(w.claim, f.ended)
	l.metrics.Delivered.Add(float64(f.verdict.accepted))
	if len(f.inHand) > 0 {
		l.inHand = append(f.inHand, l.inHand...)
	}
	l.away = f.verdict.accepted == 0 && errors.Is(f.cause, sinks.ErrUnavailable)
	l.retryAt = time.Time{} // what stood behind a dead letter goes on at once
	if f.pause > 0 {
		l.retryAt = res.completed.Add(f.pause)
	}
	if !f.ended && (f.verdict.accepted > 0 || f.cause != nil) {
		l.state.report(l.number, f.verdict.accepted, f.cause)
	}
	if len(f.rows) == 0 {
		return nil
	}
	n := len(f.rows)
	err := l.give(work, &f.rows, !l.live && len(l.rows) == 0)
	l.deliveredSeq = l.givenSeq
	if f.died {
		l.diedSeq = l.givenSeq
	}
	l.unrecorded = append(l.unrecorded, unrecorded{l.givenSeq, n})
	return err
}

// noErrors is one nil a message.
func (l *lane) noErrors(n int) []error {
	if cap(l.nils) < n {
		l.nils = make([]error, n)
	}
	return l.nils[:n]
}

// survey counts what the answers say of the destination.
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

// finishing is a Deliver whose results are looked at one by one.
type finishing struct {
	*lane
	result
	verdict verdict
	probe   bool
	ended   bool // by the end of the session, which says nothing of the sink
	rows    []checkpoint.Outcome
	inHand  []*delivery   // to be tried again in place,
	pause   time.Duration // after this
	cause   error         // the last failure
	died    bool          // in place, or was discarded
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
		f.metrics.Duration.Observe(max(0, f.completed.Sub(d.CommitTime).Seconds()))
		f.record(d, checkpoint.Delivered, nil, false)
		return
	}
	f.cause = err
	switch {
	case f.oneTry:
		f.died = true
		f.metrics.Discarded.Inc()
		f.record(d, checkpoint.Discarded, err, false)
	case f.dies(d, err):
		f.verdict.died(d.hash)
		f.metrics.Dead.Inc()
		f.logger.Error("dead letter", "sink", f.name, "lane", f.number, "event_id", d.Event.ID,
			"aggregate_type", d.Event.AggregateType, "attempt", d.tries, "err", err)
		holds := !f.inPlace() || d.row || f.delivery.Block // else what stands behind it goes on in place
		o := f.record(d, checkpoint.Dead, err, false)
		o.Parked.Blocks = f.delivery.Block
		if holds {
			f.hold(d.hash, f.completed)
		} else {
			f.died = true
		}
	case f.inPlace() && !d.row:
		f.metrics.Failed.Inc()
		f.record(d, checkpoint.Failed, err, true)
		f.inHand = append(f.inHand, d)
		f.pause = max(f.pause, f.delay(d, err, true))
	default:
		f.metrics.Failed.Inc()
		o := f.record(d, checkpoint.Failed, err, false)
		o.Parked.NextAttempt = f.completed.Add(f.delay(d, err, false))
		f.hold(d.hash, o.Parked.NextAttempt)
	}
}

// notAttempted: it stands behind a failure of its aggregate, or the sink had no time to begin it. The latter must not be fresh
// again, or those that are never answered, and fill each batch, would keep out what comes behind them for good: it is due.
func (f *finishing) notAttempted(d *delivery, err error) {
	_, behind := f.held[d.hash]
	switch {
	case f.inPlace() && !d.row:
		f.inHand = append(f.inHand, d)
		return
	case d.row && (behind || d.due): // it is left in the table, at its place
	case behind:
		f.record(d, checkpoint.Parked, nil, false)
	default:
		f.record(d, checkpoint.Parked, err, false).Parked.NextAttempt = f.completed
	}
	if !behind {
		f.hold(d.hash, f.completed)
	}
}

// record adds the outcome. It is valid until the next one is added.
func (f *finishing) record(d *delivery, status checkpoint.Status, err error, inPlace bool) *checkpoint.Outcome {
	o := d.outcome(f.id, status, inPlace)
	if o.Row == checkpoint.RowInsert {
		f.floor.parked(d.position())
	}
	o.StartedAt, o.CompletedAt = f.result.started, f.completed
	if err != nil {
		o.Error = err.Error()
	}
	f.rows = append(f.rows, o)
	return &f.rows[len(f.rows)-1]
}

// dies counts an attempt, where this failure is one, and says whether it was the last.
func (f *finishing) dies(d *delivery, err error) bool {
	away := errors.Is(err, sinks.ErrUnavailable)
	giveUp := f.delivery.GiveUpAfter
	if giveUp > 0 && !f.ended && f.completed.Sub(d.triedAt) > giveUp && f.verdict.closed() {
		return true
	}
	if away || f.verdict.brokenNow() {
		return false // an outage is no fault of the message
	}
	d.attempts++
	retries := f.delivery.MaxRetries
	if d.Event.MaxRetries != nil {
		retries = *d.Event.MaxRetries
	}
	return errors.Is(err, sinks.ErrPermanent) || d.attempts > retries
}

// delay is how long to wait before the next try.
func (f *finishing) delay(d *delivery, err error, inPlace bool) time.Duration {
	wait := f.delivery.Retry.delay(d.tries)
	if after := sinks.RetryAfter(err); after > 0 { // the destination knows best
		wait = min(after, f.delivery.Retry.Max)
	}
	if inPlace && errors.Is(err, sinks.ErrUnavailable) && f.verdict.accepted == 0 {
		wait = min(wait, awayPace)
	}
	if f.probe {
		wait = max(wait, 2*f.breaker.cfg.ResetTimeout) // the next probe is another aggregate's
	}
	return wait
}

// discard gives up a delivery of a sink that is tried once, and is not asked or not waited for now.
func (l *lane) discard(d *delivery) {
	o := d.outcome(l.id, checkpoint.Discarded, false)
	o.StartedAt = time.Now()
	o.CompletedAt, o.Error = o.StartedAt, "the sink is away, slow or paused"
	d.discarded = true
	l.parks = append(l.parks, o)
	l.metrics.Discarded.Inc()
}
