package eventbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// This file finds out whether a subject is away or the destination as a whole.

// infoSubject is what is asked for whether JetStream serves this account. A user needs no right to it.
const infoSubject = "$JS.API.INFO"

// question is what has become of a call's request for infoSubject.
type question uint8

const (
	notAsked question = iota
	waiting
	over
)

var errNoAnswer = errors.New("no answer, while JetStream answers")

// settleDenied fails the messages on the wire whose subjects were denied.
func (d *delivery) settleDenied() {
	for _, subject := range d.takeDenied() {
		if subject == infoSubject {
			d.session.mayNotAsk.Store(true)
			d.asked = over
		}
		for i := range d.flights {
			if d.flights[i].bytes != 0 && d.batch.Messages[i].Topic == subject {
				d.land(i)
				d.flights[i].answered = true
				d.fail(i, fmt.Errorf("%w: subject %q: %w", d.sink.topics.Unavailable(), subject, errDenied))
			}
		}
	}
}

// failNoStream fails the messages whose subjects no stream takes. jetStreamAway says why no stream takes any subject, and is
// nil if JetStream is there.
func (d *delivery) failNoStream(jetStreamAway error) {
	class := d.sink.topics.Unavailable()
	for _, i := range d.noStream {
		subject := d.batch.Messages[i].Topic
		if jetStreamAway != nil {
			d.fail(int(i), fmt.Errorf("%w: subject %q: %w", sinks.ErrUnavailable, subject, jetStreamAway))
		} else {
			d.fail(int(i), fmt.Errorf("%w: subject %q: %w", class, subject, errNoStream))
		}
	}
}

// ask asks whether JetStream serves this account, unless the user may not. The answer comes to settleQuestion.
func (d *delivery) ask() {
	d.asked = over
	if d.session.mayNotAsk.Load() {
		return
	}
	select {
	case d.sink.queue <- frame{msg: &nats.Msg{Subject: infoSubject, Reply: d.reply(d.size)}, to: d, index: int32(d.size)}:
		d.asked, d.askedAt = waiting, time.Now()
	default: // the connection takes nothing at present
	}
}

func (d *delivery) settleQuestion(a answer) {
	if d.asked != waiting || a.err != nil {
		return
	}
	d.asked = over
	d.jetStream = judgeJetStream(a.msg)
	if errors.Is(d.jetStream, errNotEnabled) && d.session.heard.Load() > 0 {
		d.jetStream = nil // streams have answered before: they are in another domain, whose API has another subject
		return
	}
	if d.jetStream == nil {
		d.session.heard.Add(1)
		d.loseSilent(time.Now())
	}
}

// waitsForJetStream reports whether the call must not end before an answer of JetStream itself. If the account has no
// JetStream, no stream takes any subject, and the answer to a message is the same as where a single stream is missing. So
// JetStream is asked if that was the answer to a message, and no stream has answered any lane since the call began.
func (d *delivery) waitsForJetStream() bool {
	if len(d.noStream) == 0 || d.sink.topics == sinks.OneTopic || d.hasHeard() || d.session.mayNotAsk.Load() {
		return false
	}
	if d.asked == notAsked {
		d.ask()
	}
	return d.asked == waiting
}

// hasHeard reports whether a stream, or JetStream itself, has answered any lane since this call began.
func (d *delivery) hasHeard() bool { return d.session.heard.Load() != d.heardBefore }

// look is called at intervals. Messages that have no answer for long are given up if JetStream answers others, so that a
// subject that never answers does not hold up the others until the deadline.
func (d *delivery) look(now time.Time) {
	heard := d.session.heard.Load()
	answers := heard != d.heardLook
	d.heardLook = heard
	switch {
	case d.asked == waiting:
		if now.Sub(d.askedAt) >= d.sink.patience/4 {
			d.asked = over
		}
	case len(d.silent(now)) == 0:
	case answers:
		d.loseSilent(now)
	default:
		d.ask()
	}
}

// silent returns the messages on the wire that have waited for an answer for too long. A stream that has answered others of
// this call is only slow, unless all answers have ceased.
func (d *delivery) silent(now time.Time) (all []int) {
	took := now.Sub(d.began)
	if d.inAir == 0 || took < d.sink.patience {
		return nil
	}
	ceased, answered := now.Sub(d.answeredAt) >= d.sink.patience, d.answeredTopics()
	for i, f := range d.flights {
		if f.bytes != 0 && took-f.sent >= d.sink.patience && (ceased || !answered[d.batch.Messages[i].Topic]) {
			all = append(all, i)
		}
	}
	return all
}

func (d *delivery) loseSilent(now time.Time) {
	for _, i := range d.silent(now) {
		d.findAway(d.batch.Messages[i].Topic, now)
		d.loseTopic(i, errNoAnswer)
	}
}

// findAway remembers a subject that does not answer.
func (d *delivery) findAway(subject string, now time.Time) {
	if d.sink.topics == sinks.SeveralTopics {
		d.session.away.Found(subject, now)
	}
}

// loseTopic gives up message i, which is on the wire and has no answer, while other subjects have.
func (d *delivery) loseTopic(i int, why error) {
	d.lose(i, fmt.Errorf("%w: subject %q: %w", d.sink.topics.Unavailable(), d.batch.Messages[i].Topic, why))
}

// end takes the answers that have come when ctx ends, and gives up the other messages.
func (d *delivery) end(ctx context.Context) {
	d.settleDenied()
	for len(d.answers) > 0 {
		d.settle(<-d.answers)
	}
	d.failNoStream(nil)
	why := fmt.Errorf("no answer: %w", context.Cause(ctx))
	if !d.hasHeard() { // the destination may be away as a whole
		d.giveUp(why)
		return
	}
	// If ctx was cancelled, that says nothing about any stream. Nor does a deadline about one that has answered in this call, or
	// to which the message was sent just before it.
	now, answered := time.Now(), d.answeredTopics()
	for i, f := range d.flights {
		if f.bytes != 0 {
			topic := d.batch.Messages[i].Topic
			if errors.Is(ctx.Err(), context.DeadlineExceeded) && !answered[topic] && now.Sub(d.began)-f.sent >= d.sink.silence {
				d.findAway(topic, now)
			}
			d.loseTopic(i, why)
		}
	}
	for _, i := range d.ready {
		d.batch.FailRest(int(i), errNoTime)
	}
}

// answeredTopics returns the topics of the messages that had an answer.
func (d *delivery) answeredTopics() map[string]bool {
	topics := map[string]bool{}
	for i, f := range d.flights {
		if f.answered {
			topics[d.batch.Messages[i].Topic] = true
		}
	}
	return topics
}
