package kafka

import (
	"context"
	"errors"
	"fmt"

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
	batch   []sinks.Message
	records []record
	headers []header // the memory for the headers of all records
	errs    []error  // nil as long as nothing has failed

	wave  []*partition
	bytes int
	// taken holds, by the hash of the aggregate, the partition to which its messages go in this wave. nil means that
	// they wait for the next wave. Two aggregates with the same hash may wait for each other, which does no harm.
	taken  map[uint64]*partition
	failed map[sinks.Aggregate]struct{} // aggregates of which a message was not accepted
}

func (d *delivery) run(ctx context.Context, p *producer, batch []sinks.Message) []error {
	d.begin(p, batch)
	defer d.end()
	p.prepare(ctx, batch)
	for ctx.Err() == nil && d.plan() {
		p.send(ctx, d.wave, d.records)
		d.settle()
	}
	d.failRest(ctx)
	return d.errs
}

// failRest fails the messages for which ctx has left no time.
func (d *delivery) failRest(ctx context.Context) {
	for i := range d.records {
		r := &d.records[i]
		if r.settled {
			continue
		}
		if _, failed := d.failed[r.msg.Aggregate()]; failed {
			d.fail(i, sinks.ErrNotAttempted)
		} else {
			d.fail(i, fmt.Errorf("%w: not sent: %w", sinks.ErrUnavailable, context.Cause(ctx)))
		}
	}
}

func (d *delivery) begin(p *producer, batch []sinks.Message) {
	d.p, d.batch, d.errs = p, batch, nil
	p.round++
	if cap(d.records) < len(batch) {
		d.records = make([]record, len(batch))
	}
	d.records = d.records[:len(batch)]
	for i := range batch {
		d.headers = d.records[i].begin(&batch[i], &p.sink.layout, d.headers)
	}
	if d.taken == nil {
		d.taken = make(map[uint64]*partition)
	}
}

// end drops all references to the batch.
func (d *delivery) end() {
	clear(d.records)
	clear(d.headers)
	d.headers = d.headers[:0]
	clear(d.failed)
	d.batch, d.errs = nil, nil
	d.p.forget()
	d.p.encoder.shrink()
}

// plan puts the messages that may be sent now into the next wave, and fails the messages that cannot be sent at all. It
// reports whether the wave contains any message.
func (d *delivery) plan() bool {
	d.wave, d.bytes = d.wave[:0], 0
	clear(d.taken)
	for i := range d.records {
		r := &d.records[i]
		if r.settled {
			continue
		}
		agg := r.msg.Aggregate()
		if _, failed := d.failed[agg]; failed {
			d.fail(i, sinks.ErrNotAttempted)
			continue
		}
		hash := agg.Hash()
		to, taken := d.taken[hash]
		size, err := d.locate(r)
		switch {
		case taken && (err != nil || to != r.partition), err == nil && !d.add(int32(i), size):
			d.taken[hash] = nil // it waits until the outcome of the messages before it is known
		case err != nil:
			d.fail(i, err)
		default:
			d.taken[hash] = r.partition
		}
	}
	return len(d.wave) > 0
}

// locate finds the partition of r, and the size of r in its batch. It returns an error if r must not be tried.
func (d *delivery) locate(r *record) (size int, err error) {
	if r.partition == nil {
		if r.partition, err = d.p.place(r.msg); err != nil {
			return 0, err
		}
	}
	p := r.partition
	if d.p.sink.away.resting(p.place()) {
		return 0, fmt.Errorf("%w: %s: %w", sinks.ErrUnavailable, p, errResting)
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
		_, behind := d.failed[d.records[i].msg.Aggregate()]
		if behind && !p.answer.unknown {
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
	if d.failed == nil {
		d.failed = make(map[sinks.Aggregate]struct{})
	}
	d.failed[d.records[i].msg.Aggregate()] = struct{}{}
	d.errs[i] = err
	d.records[i].settled = true
}
