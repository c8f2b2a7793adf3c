package webhook

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// maxLost is how many requests in a row may have no answer before the destination counts as away. One alone may be of a
// message that its receiver dies of, which must not keep the others waiting.
const maxLost = 3

var (
	errNoTurn = errors.New("the rate left it no turn in time")
	errNoTime = errors.New("too little time was left for an answer")
)

// delivery is one Deliver.
//
// Its messages are chained by aggregate. Each worker takes a chain and sends its messages one after the other, each
// when the sink has a slot for it, until one is not accepted: the rest of its chain then is not attempted. A worker
// that finds the destination away stops them all: no request is begun after that, and those under way end as they
// will. So the first message of every chain that was not begun is unavailable; that of one for which there was no time is
// not attempted.
//
// A Deliver begins with its share of the connections, and each answer earns it one more: messages that are never answered
// leave the other lanes theirs.
type delivery struct {
	sink   *Sink
	batch  []sinks.Message
	errs   []error // each written by the worker that has its chain
	heads  []int32 // the first message of each chain
	behind []int32 // the message after one in its chain, −1 after the last

	workers sync.WaitGroup
	working atomic.Int32 // workers that were started

	taken  atomic.Int32 // chains
	failed atomic.Bool
	lost   atomic.Int32 // requests without an answer since the last one with
	took   atomic.Int64 // nanoseconds, the last answer
	// stop ends the context under which requests are begun. The first cause counts.
	stop context.CancelCauseFunc

	mu    sync.Mutex
	paths map[string]error // URLs that have been found to be away, by Sink.path
}

func newDelivery(s *Sink, batch []sinks.Message) *delivery {
	d := &delivery{sink: s, batch: batch, errs: make([]error, len(batch)), behind: make([]int32, len(batch))}
	last := make(map[sinks.Aggregate]int32, len(batch))
	for i := range batch {
		a, n := batch[i].Aggregate(), int32(i)
		if before, known := last[a]; known {
			d.behind[before] = n
		} else {
			d.heads = append(d.heads, n)
		}
		last[a], d.behind[i] = n, -1
	}
	s.known.first(d.heads, batch)
	return d
}

// run delivers. ctx is that of requests under way, the one derived from it that of beginning any.
func (d *delivery) run(ctx context.Context) []error {
	begin, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	d.stop = stop
	for range d.sink.share() {
		d.more(ctx, begin)
	}
	d.workers.Wait()
	if !d.failed.Load() {
		return nil
	}
	return d.errs
}

// more starts another worker, while there are chains and connections for it.
func (d *delivery) more(ctx, begin context.Context) {
	if int(d.working.Add(1)) <= min(len(d.heads), d.sink.connections) {
		d.workers.Go(func() { d.work(ctx, begin) })
	}
}

func (d *delivery) work(ctx, begin context.Context) {
	for {
		chain := int(d.taken.Add(1)) - 1
		if chain >= len(d.heads) {
			return
		}
		for i := d.heads[chain]; i >= 0; i = d.behind[i] {
			if d.errs[i] = d.try(ctx, begin, &d.batch[i]); d.errs[i] == nil {
				if i == d.heads[chain] {
					d.sink.known.add(d.batch[i].Aggregate())
				}
				continue
			}
			d.failed.Store(true)
			for i = d.behind[i]; i >= 0; i = d.behind[i] {
				d.errs[i] = sinks.ErrNotAttempted
			}
			break
		}
	}
}

// try sends one message, when it is its turn.
func (d *delivery) try(ctx, begin context.Context, m *sinks.Message) error {
	var s *slot
	select {
	case s = <-d.sink.slots:
		defer func() { d.sink.slots <- s }()
	case <-begin.Done():
	}
	if err := d.mayBegin(begin, m); err != nil {
		return err
	}
	request, body, err := d.sink.request(ctx, m)
	if err != nil {
		return err
	}
	if d.sink.limiter != nil {
		if d.sink.limiter.Wait(begin) != nil {
			if begin.Err() != nil {
				return cannotBegin(begin)
			}
			return fmt.Errorf("%w: %w", sinks.ErrNotAttempted, errNoTurn)
		}
		if err := d.mayBegin(begin, m); err != nil {
			return err
		}
	}
	began := time.Now()
	s.sign(request, m.UniqueID(), body, began)
	release := setBody(request, body)
	v := d.sink.send(ctx, request)
	release()
	d.learn(v, m)
	if !v.lost {
		d.took.Store(int64(time.Since(began)))
		d.more(ctx, begin)
	}
	return v.err
}

// mayBegin returns the error of a message whose request would be in vain.
func (d *delivery) mayBegin(begin context.Context, m *sinks.Message) error {
	if begin.Err() != nil {
		return cannotBegin(begin)
	}
	if err := d.sink.paused(); err != nil { // any lane may have been told
		d.stop(err)
		return err
	}
	// What is cut off at the deadline may have been accepted, and comes again.
	if deadline, ok := begin.Deadline(); ok && time.Until(deadline) < time.Duration(d.took.Load()) {
		return fmt.Errorf("%w: %w", sinks.ErrNotAttempted, errNoTime)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.paths[d.sink.path(m.Topic)]
}

func cannotBegin(begin context.Context) error {
	err := context.Cause(begin)
	if errors.Is(err, sinks.ErrUnavailable) {
		return err // of the request that found it away
	}
	return fmt.Errorf("%w: not sent in time: %w", sinks.ErrNotAttempted, err)
}

// learn keeps what a verdict means for others.
func (d *delivery) learn(v verdict, m *sinks.Message) {
	if !v.lost {
		d.lost.Store(0)
	} else if d.lost.Add(1) >= maxLost {
		v.reach = everything
	}
	switch v.reach {
	case thisMessage:
	case thisURL:
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.paths == nil {
			d.paths = make(map[string]error)
		}
		d.paths[d.sink.path(m.Topic)] = v.err
	case everything:
		d.stop(v.err)
	}
}
