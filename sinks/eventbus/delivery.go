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

// delivery is one Deliver. Of each aggregate at most one message is on the wire; the next becomes ready when that is
// accepted, and is not attempted when it is not.
type delivery struct {
	sink    *Sink
	session *session // nil: there is no connection, whyNone
	whyNone error
	number  uint64
	batch   []sinks.Message
	errs    []error // nil while nothing has failed

	next     []int32 // the message behind this one of the same aggregate, −1: none
	ready    []int32 // to be sent, in this order
	air      []int32 // by message: its size on the wire, roughly, 0 when it is not there
	inAir    int
	airBytes int
	heard    time.Time // when the last answer came, at first when this began

	answers chan answer
	denied  chan string // subjects that may not be published to
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
		// A message has one answer, and perhaps one of somebody who must not answer.
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

// answer is called by other goroutines. What finds no room comes from somebody who answers again and again.
func (d *delivery) answer(a answer) {
	select {
	case d.answers <- a:
	default:
	}
}

// deny is called by other goroutines. Where there is no room, the messages wait for the deadline.
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

// send puts on the wire what is ready, as far as there is room. It returns false when ctx ended meanwhile. What is still
// ready when it returns true has something on the wire before it, or the connection is lost.
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
		case <-d.session.lost: // run may be waiting for the next connection
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

// message makes message i, which run owns then, or tells why it is not tried.
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

// settle draws the consequences of an answer.
func (d *delivery) settle(a answer) {
	if d.air[a.index] == 0 {
		return // the second one
	}
	subject := d.batch[a.index].Topic
	err := a.err
	switch {
	case err == nil:
		d.heard = time.Now()
		d.session.wake(subject)
		err = judge(&d.batch[a.index], a.msg)
	case errors.Is(err, nats.ErrMaxPayload): // another server than the one that was asked takes less
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

// settleDenied fails what is on the wire for subject.
func (d *delivery) settleDenied(subject string) {
	for i := range d.batch {
		if d.air[i] != 0 && d.batch[i].Topic == subject {
			d.land(int32(i))
			d.fail(int32(i), fmt.Errorf("%w: subject %q: %w", sinks.ErrUnavailable, subject, errDenied))
		}
	}
}

// end takes the answers that came with the end of ctx, and gives up the rest.
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
	// That somebody lost patience says nothing of the stream, nor does a deadline that the last of many messages met.
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Since(d.heard) >= d.sink.silence {
		for i := range d.batch {
			if d.air[i] != 0 {
				d.session.letRest(d.batch[i].Topic, d.sink.rest)
			}
		}
	}
	d.giveUp(fmt.Errorf("no answer: %w", context.Cause(ctx)))
}

// giveUp fails what is on the wire or ready, and what stands behind.
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

// fail gives message i its error, and those behind it theirs.
func (d *delivery) fail(i int32, err error) {
	if d.errs == nil {
		d.errs = make([]error, len(d.batch))
	}
	d.errs[i] = err
	for i = d.next[i]; i >= 0; i = d.next[i] {
		d.errs[i] = sinks.ErrNotAttempted
	}
}
