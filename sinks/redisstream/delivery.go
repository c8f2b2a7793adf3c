package redisstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// delivery is one call of Deliver. It sends waves of messages until each message has an outcome.
//
// A wave contains at most one transaction for each stream. All messages of an aggregate in a wave are in the same
// transaction. (A topic may depend on more than the aggregate, so messages of one aggregate may belong to several
// streams.) If the server refuses an entry while it queues the transaction, it refuses the whole transaction. So these
// messages are accepted or refused together, and later messages of the aggregate are not planned before that is known.
type delivery struct {
	l       *link
	batch   sinks.Batch
	entries []entry // for each message

	streams map[string]*stream
	last    *stream // the stream that was looked up last; the next message often has the same
	wave    []*stream
	bytes   int
	// taken holds, by the number of the aggregate, the stream to which its messages go in this wave; nil if none of them is
	// in the wave yet, and &waits if they wait for the next wave.
	taken    []*stream
	trimming trimming

	answered bool // the destination has shown in this Deliver that it works
	asked    bool // all nodes of the cluster were asked whether they work
}

// waits stands in delivery.taken for an aggregate whose messages wait for the next wave.
var waits stream

// stream is a stream to which messages of this Deliver go, with its transaction in the present wave.
type stream struct {
	name string
	node string // the address of its node, if this is a cluster
	down error  // why it is not tried again in this Deliver

	members []int32 // indexes of entries
	alone   bool    // the transaction has only one member, which is large
	answer  answer

	// In a cluster: the node that has the stream, if it is another than the map says, and how often such a redirection
	// was followed.
	moved  string
	asking bool
	hops   int
}

const (
	maxHops       = 3
	maxStreamName = 1024
)

func (d *delivery) run(ctx context.Context, l *link, batch []sinks.Message) []error {
	d.begin(l, batch)
	defer d.end()
	if ctx.Err() == nil {
		release := l.hold(ctx)
		for ctx.Err() == nil && d.plan() {
			l.send(ctx, d)
			d.settle(ctx)
		}
		release()
	}
	class := sinks.ErrUnavailable
	if d.answered {
		class = sinks.ErrNotAttempted
	}
	for i := range d.entries {
		if !d.entries[i].settled {
			d.fail(i, fmt.Errorf("%w: not sent: %w", class, context.Cause(ctx)))
		}
	}
	return d.batch.Errors()
}

func (d *delivery) begin(l *link, batch []sinks.Message) {
	d.l, d.answered, d.asked = l, false, false
	d.batch.Begin(batch)
	if cap(d.entries) < len(batch) {
		d.entries = make([]entry, len(batch))
	}
	d.entries = d.entries[:len(batch)]
	for i := range batch {
		d.entries[i].begin(&batch[i], l.sink.config.ContentType)
	}
	if d.streams == nil {
		d.streams = make(map[string]*stream)
	}
	if aggregates := len(d.batch.Heads()); cap(d.taken) < aggregates {
		d.taken = make([]*stream, aggregates)
	} else {
		d.taken = d.taken[:aggregates]
	}
	switch c := &l.sink.config; {
	case c.MaxLen > 0:
		d.trimming = trimming{"MAXLEN", strconv.FormatInt(c.MaxLen, 10)}
	case c.MinIDAge > 0:
		d.trimming = trimming{"MINID", strconv.FormatInt(time.Now().Add(-c.MinIDAge).UnixMilli(), 10)}
	}
}

// end drops all references to the batch.
func (d *delivery) end() {
	clear(d.entries)
	clear(d.taken)
	clear(d.streams)
	clear(d.wave)
	d.last, d.wave = nil, d.wave[:0]
	d.l.forget()
}

// plan puts the messages that may be sent now into the next wave, and fails the messages that cannot be sent at all. It
// reports whether the wave contains any message.
func (d *delivery) plan() bool {
	d.wave, d.bytes = d.wave[:0], 0
	clear(d.taken)
	for i := range d.entries {
		e := &d.entries[i]
		if e.settled {
			continue
		}
		if d.batch.Blocked(i) {
			d.fail(i, sinks.ErrNotAttempted)
			continue
		}
		to := &d.taken[d.batch.Aggregate(i)]
		err := d.locate(e)
		switch {
		case *to != nil && (err != nil || *to != e.stream), err == nil && !d.add(int32(i)):
			*to = &waits // until the outcome of the messages before it is known
		case err != nil:
			d.fail(i, err)
		default:
			*to = e.stream
		}
	}
	return len(d.wave) > 0
}

// locate finds the stream of e. It returns an error if e must not be tried.
func (d *delivery) locate(e *entry) error {
	name := e.msg.Topic
	if e.stream == nil {
		if err := checkName(name); err != nil {
			return err
		}
		if d.last == nil || d.last.name != name {
			if d.last = d.streams[name]; d.last == nil {
				d.last = d.stream(name)
				d.streams[name] = d.last
			}
		}
		e.stream = d.last
	}
	if limit := d.l.sink.config.MaxMessageBytes; e.size > limit {
		return fmt.Errorf("%w: stream %q: %d bytes, at most %d are sent", sinks.ErrPermanent, name, e.size, limit)
	}
	return e.stream.down
}

// stream begins with a stream that this Deliver has not met yet.
func (d *delivery) stream(name string) *stream {
	s := &stream{name: name}
	wait := d.l.sink.streams.Wait(name, time.Now())
	if wait == 0 {
		return s
	}
	s.down = sinks.PutOff(wait)
	if err := d.l.sink.away.resting(""); err != nil {
		s.down = unavailable(sinks.ErrUnavailable, name, err)
	}
	return s
}

// checkName refuses names of streams that Redis would accept, but that nobody wants: a field of the template had a
// strange value.
func checkName(name string) error {
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	switch {
	case name == "":
		return fmt.Errorf("%w: the stream's name is empty", sinks.ErrPermanent)
	case len(name) > maxStreamName:
		return fmt.Errorf("%w: the stream's name is of %d bytes, at most %d are taken", sinks.ErrPermanent, len(name), maxStreamName)
	case strings.ContainsFunc(name, control):
		return fmt.Errorf("%w: the stream's name %.100q holds a control character", sinks.ErrPermanent, name)
	}
	return nil
}

// add puts entry i into the transaction of its stream. It reports whether there was room.
func (d *delivery) add(i int32) bool {
	e := &d.entries[i]
	s := e.stream
	large := e.large > largeBytes
	begun := len(s.members) > 0
	if begun && (large || s.alone) || len(d.wave) > 0 && d.bytes+e.size > maxWaveBytes {
		return false
	}
	if !begun {
		d.wave = append(d.wave, s)
		s.alone, s.answer = large, answer{}
	}
	s.members = append(s.members, i)
	d.bytes += e.size
	return true
}

// settle gives messages their outcomes by the answers. A message that has none after that is planned again.
func (d *delivery) settle(ctx context.Context) {
	for _, s := range d.wave {
		if s.answer.answered() {
			d.answered = true
			d.l.sink.nodes.Answered(s.node)
		}
	}
	for _, s := range d.wave {
		a := &s.answer
		switch {
		case a.executed && a.each == nil:
			d.l.sink.streams.Answered(s.name)
			for _, i := range s.members {
				d.entries[i].settled = true
			}
		case a.executed:
			d.settleEach(ctx, s)
		case a.moved != "" && s.hops < maxHops && d.l.cluster():
			s.moved, s.asking = a.moved, a.asking
			s.hops++
		default:
			d.failAll(ctx, s)
		}
		d.l.broken = d.l.broken || a.broken
		s.members = s.members[:0]
	}
}

// settleEach settles a transaction that was executed, but of which single entries failed. If an entry was accepted
// after one of the same aggregate had failed, it is reported as not accepted, and comes again after that one. The same
// id twice is better than an order that stays wrong. This needs an error that concerns a single entry; no such error of
// Redis is known that is not found out beforehand.
func (d *delivery) settleEach(ctx context.Context, s *stream) {
	for n, i := range s.members {
		var r refusal
		switch {
		case d.batch.Blocked(int(i)):
			d.fail(int(i), sinks.ErrNotAttempted)
		case !errors.As(s.answer.each[n], &r):
			d.entries[i].settled = true
		case r.scope() == ofMessage:
			d.fail(int(i), r.failure(s.name))
		case s.down != nil: // all entries of the stream have the same error
			d.fail(int(i), s.down)
		default:
			s.down = d.away(ctx, s, r)
			d.fail(int(i), s.down)
		}
	}
	if s.down == nil {
		d.l.sink.streams.Answered(s.name)
	}
}

// failAll fails a transaction of which nothing was accepted, or of which that is not known. The first message of each
// aggregate gets the error. The later ones are ErrNotAttempted, unless they may have been accepted.
func (d *delivery) failAll(ctx context.Context, s *stream) {
	var err error
	switch {
	case s.alone && s.answer.tooLarge:
		err = fmt.Errorf("%w: stream %q: %w", sinks.ErrPermanent, s.name, s.answer.err)
	case s.answer.wait > 0:
		err = d.putOff(ctx, s)
		s.down = err
	default:
		err = d.away(ctx, s, s.answer.err)
		s.down = err
	}
	for _, i := range s.members {
		if s.answer.unknown {
			d.batch.Lose(int(i), err)
			d.entries[i].settled = true
		} else {
			d.fail(int(i), err)
		}
	}
}

// away returns the error for messages of a stream when it is away, or its node, or the destination as a whole. For the calls to
// come it remembers what is away.
func (d *delivery) away(ctx context.Context, s *stream, err error) error {
	sink, now := d.l.sink, time.Now()
	// Something else than a time-out that has ended ctx says nothing about the node.
	isKnown := s.answer.down() && (ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded))
	switch {
	case scopeOf(err) == ofStream:
		if sink.several() {
			sink.streams.Found(s.name, now)
		}
		return unavailable(sink.config.Topics.Unavailable(), s.name, err)
	case d.othersAnswer(ctx, s):
		if isKnown {
			sink.nodes.Found(s.node, now)
		}
		return unavailable(sinks.ErrTopicUnavailable, s.name, err)
	}
	if isKnown && s.answer.timedOut {
		sink.away.set(s.node, now.Add(sink.rest))
	}
	sink.nodes.Answered(s.node) // what is away as a whole is asked whenever the connector wants it
	return unavailable(sinks.ErrUnavailable, s.name, err)
}

// putOff returns the error for messages of a stream whose node was found away a short time ago.
func (d *delivery) putOff(ctx context.Context, s *stream) error {
	if d.othersAnswer(ctx, s) {
		d.l.reread(ctx)
		return sinks.PutOff(s.answer.wait)
	}
	d.l.sink.nodes.Answered(s.node)
	return unavailable(sinks.ErrUnavailable, s.name, errNoneAnswers)
}

// othersAnswer reports whether the destination works although the node of s does not. If nothing has answered in this Deliver
// yet, it asks the other nodes of the cluster. Streams are on several servers only in a cluster.
func (d *delivery) othersAnswer(ctx context.Context, s *stream) bool {
	switch {
	case s.node == "" || !d.l.sink.several():
		return false
	case !d.answered && !d.asked && ctx.Err() == nil:
		d.asked = true
		d.answered = d.l.otherNodeAnswers(ctx)
	}
	return d.answered
}

// fail gives message i its outcome: it was not accepted. Behind another one of its aggregate that has failed, it becomes
// ErrNotAttempted.
func (d *delivery) fail(i int, err error) {
	d.batch.Fail(i, err)
	d.entries[i].settled = true
}
