package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// delivery is one call of Deliver. It sends waves of messages until each message has an outcome.
//
// A wave contains at most one batch for each partition, and the broker accepts or refuses a batch as a whole. All
// messages of an aggregate in a wave go to the same partition. (Topic and key may depend on more than the aggregate, so
// messages of one aggregate may belong to several partitions.) So they are accepted or refused together, and later
// messages of the aggregate are not planned before that is known.
type delivery struct {
	p       *producer
	batch   sinks.Batch
	records []record
	headers []header // the memory for the headers of all records

	wave  []*partition
	bytes int
	again bool         // the wave is for partitions that are asked again because they were found away
	more  bool         // messages wait for a wave of the other kind
	taken []*partition // for each aggregate, where its messages go in this wave: nil if it has none yet, or nextWave
}

// nextWave stands for a partition in delivery.taken. It says that the next message of the aggregate waits until the outcome
// of this wave is known, and so do all messages behind it.
var nextWave = new(partition)

func (d *delivery) run(ctx context.Context, p *producer, messages []sinks.Message) []error {
	d.begin(p, messages)
	defer d.end()
	p.prepare(ctx, messages)
	for ctx.Err() == nil && p.gone == nil && d.plan() {
		p.send(ctx, d.wave, d.records)
		d.settle()
	}
	d.failRest(ctx)
	return d.batch.Errors()
}

// failRest fails the messages that were not sent, because the cluster is away or because ctx has left no time.
func (d *delivery) failRest(ctx context.Context) {
	var err error
	for i := range d.records {
		if d.records[i].settled {
			continue
		}
		if err == nil {
			err = d.p.notSent(ctx)
		}
		d.fail(i, err)
	}
}

func (d *delivery) begin(p *producer, messages []sinks.Message) {
	d.p = p
	d.batch.Begin(messages)
	p.begin()
	n := len(messages)
	d.records = slices.Grow(d.records[:0], n)[:n]
	for i := range messages {
		d.headers = d.records[i].begin(&messages[i], &p.sink.layout, d.headers)
	}
	aggregates := len(d.batch.Heads())
	d.taken = slices.Grow(d.taken[:0], aggregates)[:aggregates]
}

// end drops all references to the batch.
func (d *delivery) end() {
	clear(d.records)
	clear(d.headers)
	d.headers = d.headers[:0]
	clear(d.taken)
	d.p.forget()
	d.p.encoder.shrink()
}

// plan makes the next wave. It reports whether the wave contains any message. Partitions that were found away are asked again
// when nothing is left to do for the others, so that nobody waits for them.
func (d *delivery) plan() bool {
	d.again = false
	d.fill()
	if len(d.wave) == 0 && d.more {
		d.again = true
		d.fill()
	}
	return len(d.wave) > 0
}

// fill puts the messages that may be sent now into the wave, and fails the messages that cannot be sent at all.
func (d *delivery) fill() {
	d.wave, d.bytes, d.more = d.wave[:0], 0, false
	clear(d.taken)
	for i := range d.records {
		r := &d.records[i]
		if r.settled {
			continue
		}
		if d.batch.Blocked(i) {
			d.fail(i, sinks.ErrNotAttempted)
			continue
		}
		to := &d.taken[d.batch.Aggregate(i)]
		size, err := d.locate(r)
		switch {
		case err == nil && (r.partition.again > 0) != d.again:
			d.more = true
			*to = nextWave
		case *to != nil && (err != nil || *to != r.partition), err == nil && !d.add(int32(i), size):
			*to = nextWave
		case err != nil:
			d.fail(i, err)
		default:
			*to = r.partition
		}
	}
}

// locate finds the partition of r, and the size of r in its batch. It returns an error if r must not be tried.
func (d *delivery) locate(r *record) (size int, err error) {
	if r.partition == nil {
		if r.partition, err = d.p.place(r.msg); err != nil {
			return 0, err
		}
	}
	p := r.partition
	if p.resting != nil {
		return 0, p.resting
	}
	if p.count == 0 {
		p.baseTimestamp = r.timestamp
	}
	size = r.measure(p.baseTimestamp, p.count)
	if limit := d.p.sink.config.MaxMessageBytes; size > limit {
		return 0, fmt.Errorf("%w: %s: %d bytes, at most %d are sent", sinks.ErrPermanent, p, size, limit)
	}
	return size, nil
}

// add puts record i into the batch of its partition. It reports whether there was room.
func (d *delivery) add(i int32, size int) bool {
	r := &d.records[i]
	p := r.partition
	if p.count > 0 && p.size+size > p.limit || len(d.wave) > 0 && d.bytes+size > maxWaveBytes {
		return false
	}
	if p.count == 0 {
		d.wave = append(d.wave, p)
		p.first, p.size, p.maxTimestamp = i, 0, r.timestamp
	} else {
		d.records[p.last].next = i
	}
	r.next, p.last = -1, i
	p.maxTimestamp = max(p.maxTimestamp, r.timestamp)
	p.count++
	p.size += size
	d.bytes += size
	return true
}

// settle gives messages their outcomes by the answers. A message that has none after that is planned again.
func (d *delivery) settle() {
	for _, p := range d.wave {
		a := p.answer
		switch {
		case a.verdict == accepted:
			for i := p.first; i >= 0; i = d.records[i].next {
				d.records[i].settled = true
			}
		case a.verdict == refused && p.count > 1:
			// The refusal says nothing about a single record. Smaller batches will, in the end of one record each.
			p.limit = p.size / 2
			if errors.Is(a.err, kerr.MessageTooLarge) {
				p.topic.maxBatch = min(p.topic.maxBatch, p.limit)
			}
		case a.verdict == renumber && !p.renumbered:
			p.renumbered = true
		default:
			d.failBatch(p)
		}
		p.count, p.batch = 0, nil
	}
}

// failBatch fails the records of p in this wave. The first record of each aggregate gets the error. The later ones are
// ErrNotAttempted, unless the whole batch may have been accepted.
func (d *delivery) failBatch(p *partition) {
	err := p.answer.failure(p)
	for i := p.first; i >= 0; i = d.records[i].next {
		if p.answer.unknown {
			d.batch.Lose(int(i), err)
			d.records[i].settled = true
		} else {
			d.fail(int(i), err)
		}
	}
}

func (d *delivery) fail(i int, err error) {
	d.batch.Fail(i, err)
	d.records[i].settled = true
}
