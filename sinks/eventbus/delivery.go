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
	batch   []sinks.Message
	errs    []error // nil as long as nothing has failed

	next     []int32 // for each message, the next one of the same aggregate; −1 for the last
	ready    []int32 // the messages to send next, in this order
	air      []int32 // for each message that is on the wire, about its size; 0 for the others
	inAir    int
	airBytes int
	heard    time.Time // when the last answer came; before the first one, when Deliver began

	answers chan answer
	denied  chan string // subjects to which the user may not publish
	over    atomic.Bool // Deliver has returned
}

var (
	errResting      = errors.New("its stream has just not answered, and is not tried again yet")
	errNoConnection = errors.New("no server was reached yet")
	errDenied       = errors.New("no right to publish there: allow it for this user")
)

func newDelivery(s *Sink, batch []sinks.Message) *delivery {
	d := &delivery{
		sink: s, batch: batch, heard: time.Now(),
		next: make([]int32, len(batch)), air: make([]int32, len(batch)), ready: make([]int32, 0, len(batch)),
		// Each message gets one answer, and perhaps a second one from somebody who should not answer.
		answers: make(chan answer, 2*len(batch)),
		denied:  make(chan string, 16),
	}
	last := make(map[sinks.Aggregate]int32, len(batch))
	for i := range batch {
		a := batch[i].Aggregate()
		if before, ok := last[a]; ok {
			d.next[before] = int32(i)
		} else {
			d.ready = append(d.ready, int32(i))
		}
		d.next[i], last[a] = -1, int32(i)
	}
	return d
}

// answer takes an answer from another goroutine. If there is no room for it, somebody answers again and again, and it is
// dropped.
func (d *delivery) answer(a answer) {
	select {
	case d.answers <- a:
	default:
	}
}

// deny takes a denied subject from another goroutine. If there is no room for it, the messages of the subject wait until
// the deadline.
func (d *delivery) deny(subject string) {
	select {
	case d.denied <- subject:
	default:
	}
}

func (d *delivery) run(ctx context.Context) []error {
	if d.session == nil {
		why := d.whyNone
		if why == nil {
			why = errNoConnection
		}
		d.giveUp(fmt.Errorf("not connected: %w", why))
		return d.errs
	}
	for {
		if ctx.Err() != nil || !d.send(ctx) {
			d.end(ctx)
			return d.errs
		}
		if d.inAir == 0 && len(d.ready) == 0 {
			return d.errs
		}
		select {
		case a := <-d.answers:
			d.settle(a)
		case subject := <-d.denied:
			d.settleDenied(subject)
		case <-d.session.lost:
			d.giveUp(fmt.Errorf("the connection was lost: %w", d.session.err))
			return d.errs
		case <-ctx.Done():
		}
	}
}

// send sends the ready messages, as far as there is room on the wire. It returns false if ctx has ended meanwhile. If it
// returns true and messages are still ready, then others are on the wire, for whose answers they wait, or the connection
// is lost.
func (d *delivery) send(ctx context.Context) bool {
	for len(d.ready) > 0 {
		i := d.ready[0]
		size := headerRoom + len(d.batch[i].Event.Payload)
		if d.inAir > 0 && d.airBytes+size > maxAirBytes {
			return true
		}
		msg, err := d.message(i)
		if err != nil {
			d.ready = d.ready[1:]
			d.fail(i, err)
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
		d.air[i] = int32(size)
		d.inAir++
		d.airBytes += size
	}
	return true
}

// message makes the NATS message for message i, which run owns afterwards. It returns an error if the message must not be
// tried.
func (d *delivery) message(i int32) (*nats.Msg, error) {
	m := &d.batch[i]
	if err := checkSubject(m.Topic); err != nil {
		return nil, fmt.Errorf("%w: %w", sinks.ErrPermanent, err)
	}
	if d.session.isResting(m.Topic) {
		return nil, fmt.Errorf("%w: subject %q: %w", sinks.ErrUnavailable, m.Topic, errResting)
	}
	msg := &nats.Msg{
		Subject: m.Topic,
		Reply:   d.sink.inbox + strconv.FormatUint(d.number, 36) + "." + strconv.FormatInt(int64(i), 36),
		Header:  d.sink.headers(m),
	}
	n := size(msg) + len(m.Event.Payload)
	if int64(n) > d.session.maxPayload {
		return nil, fmt.Errorf("%w: subject %q: %d bytes with headers, the server takes %d (max_payload)",
			sinks.ErrPermanent, m.Topic, n, d.session.maxPayload)
	}
	msg.Data = bytes.Clone(m.Event.Payload)
	return msg, nil
}

// settle gives a message its outcome, and makes the next one of its aggregate ready.
func (d *delivery) settle(a answer) {
	if d.air[a.index] == 0 {
		return // a second answer
	}
	subject := d.batch[a.index].Topic
	err := a.err
	switch {
	case err == nil:
		d.heard = time.Now()
		d.session.wake(subject)
		err = judge(&d.batch[a.index], a.msg)
	case errors.Is(err, nats.ErrMaxPayload): // the connection now leads to a server with a lower limit
		err = fmt.Errorf("%w: subject %q: %w", sinks.ErrPermanent, subject, err)
	default:
		err = fmt.Errorf("%w: subject %q: %w", sinks.ErrUnavailable, subject, err)
	}
	d.land(a.index)
	if err != nil {
		d.fail(a.index, err)
	} else if next := d.next[a.index]; next >= 0 {
		d.ready = append(d.ready, next)
	}
}

func (d *delivery) land(i int32) {
	d.airBytes -= int(d.air[i])
	d.inAir--
	d.air[i] = 0
}

// settleDenied fails the messages of a subject that are on the wire.
func (d *delivery) settleDenied(subject string) {
	for i := range d.batch {
		if d.air[i] != 0 && d.batch[i].Topic == subject {
			d.land(int32(i))
			d.fail(int32(i), fmt.Errorf("%w: subject %q: %w", sinks.ErrUnavailable, subject, errDenied))
		}
	}
}

// end takes the answers that have come when ctx ends, and gives up the other messages.
func (d *delivery) end(ctx context.Context) {
	for {
		select {
		case a := <-d.answers:
			d.settle(a)
			continue
		default:
		}
		break
	}
	// If ctx was cancelled, that says nothing about the stream. Nor does a deadline, if answers came until shortly before it.
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Since(d.heard) >= d.sink.silence {
		for i := range d.batch {
			if d.air[i] != 0 {
				d.session.letRest(d.batch[i].Topic, d.sink.rest)
			}
		}
	}
	d.giveUp(fmt.Errorf("no answer: %w", context.Cause(ctx)))
}

// giveUp fails the messages that are on the wire or ready, and the later ones of their aggregates.
func (d *delivery) giveUp(why error) {
	for i := range d.batch {
		if d.air[i] != 0 {
			d.land(int32(i))
			d.ready = append(d.ready, int32(i))
		}
	}
	for _, i := range d.ready {
		d.fail(i, fmt.Errorf("%w: %w", sinks.ErrUnavailable, why))
	}
	d.ready = nil
}

// fail gives message i its error, and ErrNotAttempted to the later messages of its aggregate.
func (d *delivery) fail(i int32, err error) {
	if d.errs == nil {
		d.errs = make([]error, len(d.batch))
	}
	d.errs[i] = err
	for i = d.next[i]; i >= 0; i = d.next[i] {
		d.errs[i] = sinks.ErrNotAttempted
	}
}
