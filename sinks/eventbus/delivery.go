package eventbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// delivery is one call of Deliver. At most one message of each aggregate is on the wire. When it is accepted, the next
// one becomes ready. When it is not, the next ones are not attempted.
type delivery struct {
	sink    *Sink
	session *natsConnection // nil if there is no connection; whyNone says why
	whyNone error
	number  uint64
	batch   *sinks.Batch
	size    int // of batch
	began   time.Time

	ready       []int32  // the messages to send next, in this order
	flights     []flight // for each message
	inAir       int      // how many messages are on the wire
	airBytes    int
	noStream    []int32 // messages whose subjects no stream takes. They get their error at the end.
	heardBefore int64   // what session.heard was when the call began

	answers chan answer
	denials chan struct{} // receives when denied is no longer empty
	denied  []string      // subjects to which the user may not publish; guarded by Sink.mu
	over    atomic.Bool   // Deliver has returned
}

// flight is a message on the wire.
type flight struct {
	sent     time.Duration // when it was sent, since the call began
	bytes    int32         // about its size while it is on the wire, 0 before and after that
	answered bool
}

var (
	errNoConnection = errors.New("no server was reached yet")
	errDenied       = errors.New("no right to publish there: allow it for this user")
	errNoTime       = fmt.Errorf("%w: the time ran out before it was sent", sinks.ErrNotAttempted)
)

// infoSubject is what is asked for whether JetStream serves this account. A user needs no right to it.
const infoSubject = "$JS.API.INFO"

func newDelivery(s *Sink, batch *sinks.Batch) *delivery {
	n := len(batch.Messages)
	return &delivery{
		sink: s, batch: batch, size: n, began: time.Now(),
		ready: append(make([]int32, 0, n), batch.Heads()...), flights: make([]flight, n),
		// Each message gets one answer, and perhaps a second one from somebody who should not answer.
		answers: make(chan answer, 2*n+1),
		denials: make(chan struct{}, 1),
	}
}

// answer takes an answer from another goroutine. If there is no room for it, somebody answers again and again, and it is
// dropped.
func (d *delivery) answer(a answer) {
	select {
	case d.answers <- a:
	default:
	}
}

// deny takes a denied subject from another goroutine, which holds Sink.mu. There are at most as many as the messages that
// all lanes have on the wire.
func (d *delivery) deny(subject string) {
	d.denied = append(d.denied, subject)
	select {
	case d.denials <- struct{}{}:
	default:
	}
}

// takeDenied returns the subjects that were denied since it was called last.
func (d *delivery) takeDenied() []string {
	d.sink.mu.Lock()
	defer d.sink.mu.Unlock()
	subjects := d.denied
	d.denied = nil
	return subjects
}

func (d *delivery) run(ctx context.Context) []error {
	if d.session == nil {
		why := d.whyNone
		if why == nil {
			why = errNoConnection
		}
		d.giveUp(fmt.Errorf("not connected: %w", why))
		return d.batch.Errors()
	}
	for d.send(ctx) {
		if d.inAir == 0 && len(d.ready) == 0 {
			d.failNoStream(d.askJetStream(ctx))
			return d.batch.Errors()
		}
		select {
		case a := <-d.answers:
			d.settle(a)
		case <-d.denials:
			d.settleDenied()
		case <-d.session.lost:
			d.giveUp(fmt.Errorf("the connection was lost: %w", d.session.err))
			return d.batch.Errors()
		case <-ctx.Done():
		}
	}
	d.end(ctx)
	return d.batch.Errors()
}

// send sends the ready messages, as far as there is room on the wire. It returns false if ctx has ended. If it returns true
// and messages are still ready, then others are on the wire, for whose answers they wait, or the connection is lost.
func (d *delivery) send(ctx context.Context) bool {
	if len(d.ready) == 0 || ctx.Err() != nil {
		return ctx.Err() == nil
	}
	now := time.Now()
	for len(d.ready) > 0 {
		i := d.ready[0]
		about := headerRoom + len(d.batch.Messages[i].Event.Payload)
		if d.inAir > 0 && d.airBytes+about > maxAirBytes {
			return true
		}
		msg, err := d.message(i, now)
		if err != nil {
			d.ready = d.ready[1:]
			d.batch.FailRest(int(i), err)
			continue
		}
		select {
		case d.sink.queue <- frame{msg: msg, to: d, index: i}:
		case <-d.session.lost: // run takes no frames while it waits for the next connection
			return true
		case <-ctx.Done():
			return false
		}
		d.ready = d.ready[1:]
		d.flights[i] = flight{sent: now.Sub(d.began), bytes: int32(about)}
		d.inAir++
		d.airBytes += about
	}
	return true
}

// message makes the NATS message for message i, which run owns afterwards. It returns an error if the message must not be
// tried.
func (d *delivery) message(i int32, now time.Time) (*nats.Msg, error) {
	m := &d.batch.Messages[i]
	if err := checkSubject(m.Topic); err != nil {
		return nil, fmt.Errorf("%w: %w", sinks.ErrPermanent, err)
	}
	if wait := d.session.away.Wait(m.Topic, now); wait > 0 {
		return nil, sinks.PutOff(wait)
	}
	msg := &nats.Msg{Subject: m.Topic, Reply: d.reply(int(i)), Header: d.sink.headers(m)}
	n := size(msg) + len(m.Event.Payload)
	if int64(n) > d.session.maxPayload {
		return nil, fmt.Errorf("%w: subject %q: %d bytes with headers, the server takes %d (max_payload)",
			sinks.ErrPermanent, m.Topic, n, d.session.maxPayload)
	}
	msg.Data = bytes.Clone(m.Event.Payload)
	return msg, nil
}

// reply returns the subject for the answer to message i.
func (d *delivery) reply(i int) string {
	return d.sink.inbox + strconv.FormatUint(d.number, 36) + "." + strconv.FormatInt(int64(i), 36)
}

// settle gives a message its outcome, and makes the next one of its aggregate ready.
func (d *delivery) settle(a answer) {
	i := int(a.index)
	if i >= d.size || d.flights[i].bytes == 0 {
		return // a second answer, or a late one of JetStream itself
	}
	d.land(i)
	m := &d.batch.Messages[i]
	switch err := a.err; {
	case errors.Is(err, nats.ErrMaxPayload): // the connection now leads to a server with a lower limit
		d.batch.FailRest(i, fmt.Errorf("%w: subject %q: %w", sinks.ErrPermanent, m.Topic, err))
		return
	case err != nil:
		d.batch.FailRest(i, fmt.Errorf("%w: subject %q: %w", sinks.ErrUnavailable, m.Topic, err))
		return
	}
	d.flights[i].answered = true
	err := judge(m, a.msg, d.sink.topics.Unavailable())
	if errors.Is(err, errNoStream) {
		d.noStream = append(d.noStream, a.index)
		return
	}
	if !errors.Is(err, errNotJetStream) {
		d.session.heard.Add(1)
	}
	if err != nil {
		d.fail(i, err)
		return
	}
	d.session.away.Answered(m.Topic)
	if next := d.batch.Next(i); next >= 0 {
		d.ready = append(d.ready, int32(next))
	}
}

func (d *delivery) land(i int) {
	d.airBytes -= int(d.flights[i].bytes)
	d.inAir--
	d.flights[i].bytes = 0
}

// fail fails message i, which had an answer, and with it the later messages of its aggregate.
func (d *delivery) fail(i int, err error) {
	switch topic := d.batch.Messages[i].Topic; {
	case errors.Is(err, sinks.ErrTopicUnavailable):
		d.session.away.Found(topic, time.Now())
	case !errors.Is(err, sinks.ErrUnavailable):
		d.session.away.Answered(topic)
	}
	d.batch.FailRest(i, err)
}

// settleDenied fails the messages on the wire whose subjects were denied.
func (d *delivery) settleDenied() {
	for _, subject := range d.takeDenied() {
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

// askJetStream finds out whether JetStream serves this account. If it does not, no stream takes any subject, and the answer
// to a message is the same as if a single stream is missing. It asks only if that is the answer to a message of this call,
// and no stream has answered any lane since the call began. It returns nil if it does not get to know.
func (d *delivery) askJetStream(ctx context.Context) error {
	if len(d.noStream) == 0 || d.sink.topics == sinks.OneTopic || d.hasHeard() || d.session.mayNotAsk.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.sink.silence)
	defer cancel()
	question := frame{msg: &nats.Msg{Subject: infoSubject, Reply: d.reply(d.size)}, to: d, index: int32(d.size)}
	select {
	case d.sink.queue <- question:
	case <-d.session.lost:
		return nil
	case <-ctx.Done():
		return nil
	}
	for {
		select {
		case a := <-d.answers:
			if int(a.index) == d.size && a.err == nil {
				err := judgeJetStream(a.msg)
				if errors.Is(err, errNotEnabled) && d.session.heard.Load() > 0 {
					return nil // streams have answered before: they are in another domain, whose API has another subject
				}
				return err
			}
		case <-d.denials:
			if slices.Contains(d.takeDenied(), infoSubject) {
				d.session.mayNotAsk.Store(true)
				return nil
			}
		case <-d.session.lost:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// hasHeard reports whether a stream has answered any lane since this call began.
func (d *delivery) hasHeard() bool { return d.session.heard.Load() != d.heardBefore }

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
	wasDeadline := errors.Is(ctx.Err(), context.DeadlineExceeded)
	took := time.Since(d.began)
	var answered map[string]bool
	for i, f := range d.flights {
		if f.bytes == 0 {
			continue
		}
		topic := d.batch.Messages[i].Topic
		if answered == nil {
			answered = d.answeredTopics()
		}
		class := d.sink.topics.Unavailable()
		if wasDeadline && d.sink.topics == sinks.SeveralTopics && !answered[topic] && took-f.sent >= d.sink.silence {
			d.session.away.Found(topic, time.Now())
		}
		d.lose(i, fmt.Errorf("%w: subject %q: %w", class, topic, why))
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

// giveUp fails the messages that are on the wire or ready, and the later ones of their aggregates, because the destination is
// away.
func (d *delivery) giveUp(why error) {
	d.failNoStream(nil)
	err := fmt.Errorf("%w: %w", sinks.ErrUnavailable, why)
	for i, f := range d.flights {
		if f.bytes != 0 {
			d.lose(i, err)
		}
	}
	for _, i := range d.ready {
		d.batch.FailRest(int(i), err)
	}
}

// lose gives up message i, which is on the wire. The later messages of its aggregate were not sent.
func (d *delivery) lose(i int, err error) {
	d.land(i)
	d.batch.Lose(i, err)
	if next := d.batch.Next(i); next >= 0 {
		d.batch.FailRest(next, err)
	}
}
