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

// maxLost is how many requests in a row may end without an answer before the destination counts as away. A single one
// may be for a message that crashes the receiver. Such a message must not make the others wait.
const maxLost = 3

var (
	errNoTurn = errors.New("the rate left it no turn in time")
	errNoTime = errors.New("too little time was left for an answer")
)

// delivery is one call of Deliver.
//
// The messages of each aggregate form a chain. Each worker takes a chain and sends its messages one after the other.
// For each it waits until the sink has a free slot. If a message is not accepted, the rest of its chain is not
// attempted. If a worker finds the destination away, it stops all workers: no request is begun after that, and those
// under way are waited for. The first message of each chain that was not begun then fails with ErrUnavailable. If it
// was the time that ran out, it fails with ErrNotAttempted.
//
// A delivery begins with a share of the connections. Each answer earns it one more connection. So messages that are
// never answered leave connections to the other lanes.
type delivery struct {
	sink   *Sink
	batch  []sinks.Message
	errs   []error // each is written by the worker that has the chain of its message
	heads  []int32 // for each chain, the index of its first message
	behind []int32 // for each message, the index of the next one in its chain; −1 for the last

	workers sync.WaitGroup
	working atomic.Int32 // how many workers were started

	taken  atomic.Int32 // how many chains were taken by workers
	failed atomic.Bool
	lost   atomic.Int32 // how many requests in a row had no answer
	took   atomic.Int64 // how many nanoseconds the last answer took
	// stop ends the context under which requests are begun. Only its first call sets the cause.
	stop context.CancelCauseFunc

	mu    sync.Mutex
	paths map[string]error // the errors of URLs that were found to be away, by Sink.path
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

// run delivers. Requests run under ctx. They are begun only while a context that is derived from ctx has not ended.
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

// more starts another worker if there is a chain and a connection for it.
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

// try waits for a slot, and for the rate limit, and sends one message.
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

// mayBegin returns an error if a request for this message would be in vain.
func (d *delivery) mayBegin(begin context.Context, m *sinks.Message) error {
	if begin.Err() != nil {
		return cannotBegin(begin)
	}
	if err := d.sink.paused(); err != nil { // the receiver may have asked for a pause in an answer to any lane
		d.stop(err)
		return err
	}
	// A request that the deadline cuts off may have been accepted, and the message would come twice. So none is begun
	// if the time that is left is shorter than the last answer took.
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
		return err // of the request that found the destination away
	}
	return fmt.Errorf("%w: not sent in time: %w", sinks.ErrNotAttempted, err)
}

// learn keeps what a verdict says about other messages.
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
