package connector

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// awayPace is the longest wait before a destination that is away is asked again in place. One request every 10 s costs
	// little. Without it everything would wait minutes for a destination that has recovered.
	awayPace = 10 * time.Second
	// topicPace is the longest wait before a message is tried again whose topic alone is away. Only a try can show that the topic
	// is back.
	topicPace = sinks.LongestAway
)

// failurePolicy says what becomes of a message that was not accepted and is not dead.
type failurePolicy uint8

const (
	parkFailed    failurePolicy = iota // it is parked until it is due again
	retryInPlace                       // the lane keeps it and tries it again: park_after: never
	discardFailed                      // it is discarded: the sink is tried once
)

// answerClass is what a sink's error says, as the contract of sinks.Sink defines it.
type answerClass uint8

const (
	accepted answerClass = iota
	refused
	permanentlyRefused
	topicAway
	away
	notAttempted
)

var classes = map[error]answerClass{
	nil: refused, sinks.ErrPermanent: permanentlyRefused, sinks.ErrTopicUnavailable: topicAway, sinks.ErrUnavailable: away,
	sinks.ErrNotAttempted: notAttempted,
}

func classOf(err error) answerClass {
	if err == nil {
		return accepted
	}
	return classes[sinks.ClassOf(err)]
}

// errorClassOf returns the class under which a message is counted that was tried and not accepted.
func errorClassOf(class answerClass, err error) monitoring.ErrorClass {
	switch {
	case sinks.IsThrottled(err):
		return monitoring.ErrorThrottled
	case class == away:
		return monitoring.ErrorUnavailable
	case class == topicAway:
		return monitoring.ErrorTopicUnavailable
	case class == permanentlyRefused:
		return monitoring.ErrorPermanent
	}
	return monitoring.ErrorRefused
}

// survey counts what the answers to one Deliver say of the destination.
func survey(messages []*delivery, errs []error) verdict {
	if errs == nil { // by far the most frequent answer
		return verdict{accepted: len(messages)}
	}
	var v verdict
	for i, d := range messages {
		class := classOf(errs[i])
		v.news = v.news || d.tries == 0 && !d.due && class != notAttempted
		switch class {
		case accepted:
			v.accepted++
		case away:
			v.away++
		case refused, permanentlyRefused, topicAway:
			v.answered++
		case notAttempted:
		}
	}
	return v
}

// fate is what becomes of a message that was tried and not accepted.
type fate uint8

const (
	fateParked fate = iota // tried again later, from the table
	fateKept               // tried again later, in place
	fateDead
	fateDiscarded
)

// failure describes a try that was not accepted. With the policy and the death budget it decides the message's fate.
type failure struct {
	class    answerClass
	attempts int  // tries before this one that were refused
	retries  int  // how many retries the message has after its first attempt
	tooOld   bool // it has been tried for longer than give_up_after, and the destination is not away
	row      bool // it has a row in outbox_parked
}

// refused reports whether the failure is the message's own. An outage is no fault of a message, and uses no attempt.
func (f failure) refused() bool { return f.class == refused || f.class == permanentlyRefused }

// fateOf returns the fate of a message, and whether this failure uses an attempt. mayDie takes one death out of the sink's budget. A
// message that should die and may not is parked, also in place: its lane would stand still, and no acceptance could ever come.
func (p failurePolicy) fateOf(f failure, mayDie func() bool) (fate fate, usesAttempt bool) {
	switch {
	case p == discardFailed:
		return fateDiscarded, f.refused()
	case f.class == permanentlyRefused, f.class == refused && f.attempts >= f.retries, f.tooOld:
		if mayDie() {
			return fateDead, f.refused()
		}
		return fateParked, false
	case p == retryInPlace && !f.row:
		return fateKept, f.refused()
	}
	return fateParked, f.refused()
}

// finish evaluates what a Deliver has answered, and gives the outcomes to the recorder.
func (l *lane) finish(work, deliver context.Context, res result) error {
	r := l.running
	l.running = nil
	clear(l.again.messages) // both arrays live on; the events must not
	defer clear(r.messages)
	if res.errs != nil && len(res.errs) != len(r.messages) || res.members != nil && len(res.members) != len(r.messages) {
		return fmt.Errorf("sink %q gave %d results for %d messages", l.name, len(res.errs), len(r.messages))
	}
	l.measures.delivered(&res, len(r.messages))
	f := finishing{lane: l, result: res, rows: make([]checkpoint.Outcome, 0, len(r.messages)), closed: l.breaker.closed.Load(), durations: l.again.took[:0]}
	f.verdict = survey(r.messages, res.errs)
	f.verdict.ended, f.verdict.probe = deliver.Err() != nil, r.probe
	f.isBack = f.verdict.away > 0 && l.breaker.backSince(res.started)
	for i, d := range r.messages {
		f.message(i, d)
	}
	l.breaker.judge(f.verdict)
	return f.end(work)
}

// finishing evaluates the results of one Deliver, message by message.
type finishing struct {
	lane      *lane
	result    result
	verdict   verdict
	closed    bool // the breaker was closed when the answers came
	isBack    bool // the destination has answered another lane after this call began
	rows      []checkpoint.Outcome
	hand      []*delivery   // tried again in place
	pause     time.Duration // how long hand waits before that
	own       time.Duration // the same without those that found the destination away
	putOff    time.Duration // the earliest time that a message was put off for; 0: none was
	cause     error         // the last failure
	died      bool          // a message died in place, or was discarded
	counts    monitoring.Counts
	durations []time.Duration // from commit to acceptance, of those that were accepted
	givenUp   int             // those that died or were discarded
}

// end gives the outcomes to the recorder, and what is tried again in place back to the lane.
func (f *finishing) end(work context.Context) error {
	l := f.lane
	if len(f.hand) > 0 {
		l.hand.list = append(f.hand, l.hand.list...)
	}
	l.hand.one = l.policy != parkFailed && f.verdict.accepted == 0 && classOf(f.cause) == away
	if f.pause == 0 {
		f.pause, f.own = f.putOff, f.putOff // nothing else was tried in vain
	}
	l.hand.at, l.hand.own = f.after(f.pause), f.after(f.own) // without a pause, what stood behind a dead letter goes on at once
	f.counts.Delivered = int64(f.verdict.accepted)
	l.objective.add(f.result.completed, f.durations, f.givenUp)
	l.again.took = f.durations
	l.state.answered(answer{lane: l.number, counts: f.counts, cause: f.cause, ended: f.verdict.ended})
	if len(f.rows) == 0 {
		return nil
	}
	err := l.give(work, checkpoint.Outcomes{Rows: f.rows, Urgent: l.mode.catchesUp() && len(l.rows) == 0})
	r := &l.recorder
	r.outcomes = r.given
	if f.died {
		r.died = r.given
	}
	r.unrecorded = append(r.unrecorded, unrecorded{r.given, len(f.rows)})
	return err
}

// message evaluates the answer to message i.
func (f *finishing) message(i int, d *delivery) {
	l := f.lane
	member, err := f.result.of(i)
	class := classOf(err)
	switch {
	case d.discarded:
		return
	case class == notAttempted:
		f.notAttempted(d, err)
		return
	}
	if d.tries++; d.tries > 1 {
		f.counts.Retried++
	}
	if d.triedAt.IsZero() {
		d.triedAt = f.result.started
	}
	if class == accepted {
		l.budget.accepted()
		f.took(i, d)
		if d.row {
			f.counts.Unparked++
		}
		l.state.topicAccepts(d.Topic)
		f.record(d, checkpoint.Delivered, nil).Member = member
		return
	}
	f.cause = err
	if !f.verdict.ended || class != away { // else the session has ended the call, which says nothing of the sink
		f.counts.Errors[errorClassOf(class, err)]++
	}
	switch class {
	case topicAway:
		l.state.topicIsAway(d.Topic, err)
	case refused, permanentlyRefused:
		l.state.refused(d.position())
	case accepted, away, notAttempted:
	}
	if class == refused && sinks.IsUncertain(err) { // one member of a composite refused it, another one may have accepted it
		d.repeats = true
	}
	what := failure{class: class, attempts: d.attempts, retries: l.delivery.MaxRetries, tooOld: f.tooOld(d), row: d.row}
	if d.Event.MaxRetries != nil {
		what.retries = *d.Event.MaxRetries
	}
	fate, usesAttempt := l.policy.fateOf(what, l.budget.mayDie)
	if usesAttempt {
		d.attempts++
	}
	switch fate {
	case fateDiscarded:
		f.discarded(d, err)
	case fateDead:
		f.dead(d, err)
	case fateKept:
		f.counts.Failed++
		f.add(d.triedInPlace(l.id, checkpoint.Failed), err)
		f.hand = append(f.hand, d)
		wait := f.delay(d, class, err)
		f.pause = max(f.pause, wait)
		if !waitsForDestination(class, err) {
			f.own = max(f.own, wait)
		}
	case fateParked:
		f.counts.Failed++
		o := f.record(d, checkpoint.Failed, err)
		o.Parked.NextAttempt = f.result.completed.Add(f.delay(d, class, err))
		l.held.untilDue(d.hash, o.Parked.NextAttempt)
		if waitsForDestination(class, err) {
			l.away.add(d.position(), o.Parked.NextAttempt)
		}
	}
}

// took measures how long the event of message i has taken from its commit to its acceptance. The exemplar leads from the histogram to its
// trace.
func (f *finishing) took(i int, d *delivery) {
	if d.CommitTime.IsZero() { // a job has parked it, and nobody knows when it was committed
		return
	}
	took := max(0, f.result.completed.Sub(d.CommitTime))
	f.durations = append(f.durations, took)
	seconds := took.Seconds()
	if id := f.result.span.TraceID(i); id != "" {
		if o, ok := f.lane.measures.event.(prometheus.ExemplarObserver); ok {
			o.ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": id})
			return
		}
	}
	f.lane.measures.event.Observe(seconds)
}

// after returns the time that is so long after the answer; zero if there is nothing to wait for.
func (f *finishing) after(wait time.Duration) time.Time {
	if wait == 0 {
		return time.Time{}
	}
	return f.result.completed.Add(wait)
}

// waitsForDestination reports whether a message that was tried waits only because the destination is away. If the destination has said
// when it wants to be asked again, that is its own wish, which is kept.
func waitsForDestination(class answerClass, err error) bool {
	return class == away && sinks.RetryAfter(err) == 0
}

// discarded discards a message of a sink that is tried once.
func (f *finishing) discarded(d *delivery, err error) {
	f.died = true
	f.givenUp++
	f.counts.Discarded++
	f.record(d, checkpoint.Discarded, err)
}

func (f *finishing) tooOld(d *delivery) bool {
	limit := f.lane.delivery.GiveUpAfter
	return limit > 0 && f.closed && !f.verdict.ended && f.result.completed.Sub(d.triedAt) > limit
}

// dead makes a dead letter. In place, and unless on_dead_letter is block, what stands behind it goes on; else it is held until the
// table was read again.
func (f *finishing) dead(d *delivery, err error) {
	l := f.lane
	f.givenUp++
	f.counts.Dead++
	l.state.died(deadLetter{eventID: d.Event.ID, eventType: d.Event.EventType, aggregateType: d.Event.AggregateType, attempt: d.tries, cause: err})
	holds := l.policy == parkFailed || d.row || l.delivery.DeadBlocks
	o := f.record(d, checkpoint.Dead, err)
	o.Parked.Blocks = l.delivery.DeadBlocks
	if holds {
		l.held.untilRead(d.hash, f.result.completed)
	} else {
		f.died = true
	}
}

// notAttempted handles a message that the sink has not begun. It is no try. If the sink says for how long, because the message's topic is
// known to be away or the destination has asked for a pause, the message is due after that. If the sink had no time left, the message is
// due at once and does not stay fresh: messages that are never answered, and fill each batch, would otherwise keep out for good those that
// stand behind them.
func (f *finishing) notAttempted(d *delivery, err error) {
	l := f.lane
	held, wait := l.held.has(d.hash), sinks.RetryAfter(err)
	switch {
	case l.policy == discardFailed && wait > 0: // the others must not wait for it
		f.discarded(d, err)
		return
	case l.policy != parkFailed && !d.row:
		f.hand = append(f.hand, d)
		if wait > 0 && (f.putOff == 0 || wait < f.putOff) {
			f.putOff = wait
		}
		return
	case held: // an earlier message of its aggregate was not accepted
		if !d.row {
			f.record(d, checkpoint.Parked, nil)
		}
		return
	case wait == 0 && d.due: // its row stays in the table, at its place
	default:
		f.record(d, checkpoint.Parked, err).Parked.NextAttempt = f.result.completed.Add(wait)
	}
	if wait > 0 {
		l.held.untilDue(d.hash, f.result.completed.Add(wait))
	} else {
		l.held.untilRead(d.hash, f.result.completed)
	}
}

// record adds the outcome of a delivery that the lane has done with, or parks. The pointer is valid until the next outcome is added.
func (f *finishing) record(d *delivery, status checkpoint.Status, err error) *checkpoint.Outcome {
	o := d.outcome(f.lane.id, status)
	if o.Row == checkpoint.RowInsert {
		if status != checkpoint.Dead {
			f.counts.Parked++
		}
		f.lane.table.floor.parked(d.position())
	}
	return f.add(o, err)
}

func (f *finishing) add(o checkpoint.Outcome, err error) *checkpoint.Outcome {
	o.StartedAt, o.CompletedAt = f.result.started, f.result.completed
	if err != nil {
		o.Error = storedText(err)
	}
	f.rows = append(f.rows, o)
	return &f.rows[len(f.rows)-1]
}

// delay is how long to wait before the next try of a message.
func (f *finishing) delay(d *delivery, class answerClass, err error) time.Duration {
	l := f.lane
	wait := l.delivery.Retry.delay(d.tries)
	switch after := sinks.RetryAfter(err); {
	case after > 0: // the destination knows best
		return min(after, l.delivery.Retry.Max)
	case class == topicAway:
		return min(wait, topicPace)
	case class != away:
		return wait
	case f.isBack:
		return 0
	case l.policy == retryInPlace && !d.row && f.verdict.accepted == 0:
		wait = min(wait, awayPace)
	}
	if reset := l.breaker.cfg.ResetTimeout; reset > 0 {
		wait = min(wait, reset) // a destination that is away is asked so often, also if this message is all that can ask
	}
	return wait
}
