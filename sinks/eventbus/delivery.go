package eventbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	asked       question
	askedAt     time.Time
	jetStream   error     // why JetStream is away as a whole, as far as its answer to asked says so
	answeredAt  time.Time // when the last answer came; before the first one, when the call began
	heardBefore int64     // what session.heard was when the call began
	heardLook   int64     // what it was when look was called last

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

func newDelivery(s *Sink, batch *sinks.Batch) *delivery {
	n, now := len(batch.Messages), time.Now()
	return &delivery{
		sink: s, batch: batch, size: n, began: now, answeredAt: now,
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
	var looks <-chan time.Time
	if d.sink.topics == sinks.SeveralTopics {
		ticker := time.NewTicker(d.sink.patience / 4)
		defer ticker.Stop()
		looks = ticker.C
	}
	for d.send(ctx) {
		if d.inAir == 0 && len(d.ready) == 0 && !d.waitsForJetStream() {
			d.failNoStream(d.jetStream)
			return d.batch.Errors()
		}
		select {
		case now := <-looks:
			d.look(now)
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
	switch {
	case i == d.size:
		d.settleQuestion(a)
		return
	case d.flights[i].bytes == 0:
		return // a second answer
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
	d.flights[i].answered, d.answeredAt = true, time.Now()
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

// giveUp fails the messages that are on the wire or ready, and the later ones of their aggregates, because the destination is
// away.
func (d *delivery) giveUp(why error) {
	d.failNoStream(nil)
	err := fmt.Errorf("%w: %w", sinks.ErrUnavailable, markLogin(why))
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
