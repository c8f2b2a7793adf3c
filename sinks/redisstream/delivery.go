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

// delivery is one Deliver. It sends waves until each message has its outcome.
//
// A wave holds at most one transaction a stream; and all messages that it holds of an aggregate are in one of them, as a
// topic need not depend on the aggregate alone. What a server refuses while it queues it refuses as a whole, so they
// share one fate, and what comes behind them is not planned before that is known.
type delivery struct {
	l       *link
	batch   []sinks.Message
	entries []entry
	errs    []error // nil while nothing has failed

	streams map[string]*stream
	last    *stream // the one looked for last: mostly the next one's too
	wave    []*stream
	bytes   int
	// taken tells where the messages of an aggregate go in this wave; nil: they wait for the next. It is known by a
	// hash only: two aggregates that share one wait for each other, which does no harm.
	taken    map[uint64]*stream
	failed   map[sinks.Aggregate]struct{} // a message of it was not accepted
	trimming trimming
}

// stream is one that messages of this Deliver go to, and its transaction in this wave.
type stream struct {
	name string
	down error // it is not tried again in this Deliver

	members []int32 // of entries
	alone   bool    // its one member is large
	answer  answer

	// In a cluster, where it is other than the map says, and how often that was followed.
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
			d.settle()
		}
		release()
	}
	for i := range d.entries {
		if e := &d.entries[i]; !e.settled && d.hasFailed(e) {
			d.fail(i, sinks.ErrNotAttempted)
		} else if !e.settled {
			d.fail(i, fmt.Errorf("%w: not sent: %w", sinks.ErrUnavailable, context.Cause(ctx)))
		}
	}
	return d.errs
}

func (d *delivery) begin(l *link, batch []sinks.Message) {
	d.l, d.batch, d.errs = l, batch, nil
	if cap(d.entries) < len(batch) {
		d.entries = make([]entry, len(batch))
	}
	d.entries = d.entries[:len(batch)]
	for i := range batch {
		d.entries[i].begin(&batch[i])
	}
	if d.taken == nil {
		d.taken, d.streams, d.failed = make(map[uint64]*stream), make(map[string]*stream), make(map[sinks.Aggregate]struct{})
	}
	switch c := &l.sink.config; {
	case c.MaxLen > 0:
		d.trimming = trimming{"MAXLEN", strconv.FormatInt(c.MaxLen, 10)}
	case c.MinIDAge > 0:
		d.trimming = trimming{"MINID", strconv.FormatInt(time.Now().Add(-c.MinIDAge).UnixMilli(), 10)}
	}
}

// end lets go of the batch.
func (d *delivery) end() {
	clear(d.entries)
	clear(d.failed)
	clear(d.streams)
	clear(d.wave)
	d.batch, d.errs, d.last, d.wave = nil, nil, nil, d.wave[:0]
	d.l.forget()
}

// plan fills the next wave with what may go now, and gives outcomes to what cannot go at all. It tells whether there is
// a wave.
func (d *delivery) plan() bool {
	d.wave, d.bytes = d.wave[:0], 0
	clear(d.taken)
	for i := range d.entries {
		e := &d.entries[i]
		if e.settled {
			continue
		}
		if d.hasFailed(e) {
			d.fail(i, sinks.ErrNotAttempted)
			continue
		}
		hash := e.msg.Aggregate().Hash()
		to, taken := d.taken[hash]
		err := d.locate(e)
		switch {
		case taken && (err != nil || to != e.stream), err == nil && !d.add(int32(i)):
			d.taken[hash] = nil // its turn comes when the outcome of what is before it is known
		case err != nil:
			d.fail(i, err)
		default:
			d.taken[hash] = e.stream
		}
	}
	return len(d.wave) > 0
}

func (d *delivery) hasFailed(e *entry) bool {
	if len(d.failed) == 0 {
		return false
	}
	_, failed := d.failed[e.msg.Aggregate()]
	return failed
}

// locate finds e's stream, or why it is not to be tried.
func (d *delivery) locate(e *entry) error {
	name := e.msg.Topic
	if e.stream == nil {
		if err := checkName(name); err != nil {
			return err
		}
		if d.last == nil || d.last.name != name {
			if d.last = d.streams[name]; d.last == nil {
				d.last = &stream{name: name}
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

// checkName refuses what Redis would take, but nobody means: a template was filled with something odd.
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

// add puts entry i into the transaction of its stream, if there is room.
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

// settle draws the consequences of the answers. What has no outcome then is planned again.
func (d *delivery) settle() {
	for _, s := range d.wave {
		a := &s.answer
		switch {
		case a.executed && a.each == nil:
			for _, i := range s.members {
				d.entries[i].settled = true
			}
		case a.executed:
			d.settleEach(s)
		case a.moved != "" && s.hops < maxHops && d.l.cluster():
			s.moved, s.asking = a.moved, a.asking
			s.hops++
		default:
			d.failAll(s)
		}
		d.l.broken = d.l.broken || a.broken
		s.members = s.members[:0]
	}
}

// settleEach is for a transaction of which single entries failed. What was accepted behind one that was not, of the same
// aggregate, is said not to have been, and comes again behind it: the same id twice is better than an order that
// stays wrong. It takes an error that is about one entry, and Redis has none that we do not know beforehand.
func (d *delivery) settleEach(s *stream) {
	for n, i := range s.members {
		e := &d.entries[i]
		var r refusal
		switch {
		case d.hasFailed(e):
			d.fail(int(i), sinks.ErrNotAttempted)
		case errors.As(s.answer.each[n], &r):
			err := r.failure(s.name)
			if errors.Is(err, sinks.ErrUnavailable) {
				s.down = err
			}
			d.fail(int(i), err)
		default:
			e.settled = true
		}
	}
}

// failAll fails a transaction of which nothing was accepted, or nobody knows. Those behind the first of their aggregate
// were not attempted, unless they may have been accepted too.
func (d *delivery) failAll(s *stream) {
	err := unavailable(s.name, s.answer.err)
	if s.alone && s.answer.tooLarge {
		err = fmt.Errorf("%w: stream %q: %w", sinks.ErrPermanent, s.name, s.answer.err)
	} else {
		s.down = err
	}
	for _, i := range s.members {
		if !s.answer.unknown && d.hasFailed(&d.entries[i]) {
			d.fail(int(i), sinks.ErrNotAttempted)
		} else {
			d.fail(int(i), err)
		}
	}
}

func (d *delivery) fail(i int, err error) {
	if d.errs == nil {
		d.errs = make([]error, len(d.batch))
	}
	d.failed[d.entries[i].msg.Aggregate()] = struct{}{}
	d.errs[i] = err
	d.entries[i].settled = true
}
