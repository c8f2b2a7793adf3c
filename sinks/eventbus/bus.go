package eventbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/pyairtable-compose/outbox-cdc/internal/glob"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// defaultConcurrency is of a Bus.
const defaultConcurrency = 16

type handler = func(ctx context.Context, m *sinks.Message) error

// Bus hands messages to handlers within the process. It is a sinks.Sink and safe for concurrent use.
//
// A message is accepted when all handlers whose patterns fit its event type have returned nil, one after the other in
// the order in which they subscribed; where there is none, at once. The first error ends that, and when the message
// comes again, all are called again: handlers must be idempotent, as consumers of every sink. The messages of an
// aggregate come one at a time, in order; different aggregates at the same time, up to a bound.
//
// A handler that goes on after its context has ended keeps its aggregate: what comes for that meanwhile is unavailable
// at once, as otherwise it would overtake. It keeps one of the bus's places too. When all places are taken by such
// handlers, everything is unavailable, at once. What such a handler returns in the end is not taken into account: its
// message comes again.
//
// A panic of a handler is a refusal, and so is runtime.Goexit.
type Bus struct {
	places chan struct{} // one in it for every aggregate that is being handled

	mu            sync.Mutex
	subscriptions []*subscription // replaced, never changed
	busy          map[sinks.Aggregate]bool
	abandoned     int // of busy: their Deliver has returned
}

type subscription struct {
	pattern string
	handler handler
}

var (
	errBusy      = errors.New("a handler of this aggregate is still running though its deadline has passed")
	errAllBusy   = errors.New("as many handlers as may run at a time are still running though their deadline has passed")
	errNotCalled = errors.New("no handler was called")
)

// NewBus makes a bus that calls handlers for up to concurrency aggregates at a time; 0 is 16.
func NewBus(concurrency int) *Bus {
	if concurrency <= 0 {
		concurrency = defaultConcurrency
	}
	return &Bus{places: make(chan struct{}, concurrency), busy: make(map[sinks.Aggregate]bool)}
}

// Subscribe calls handler for every event whose type fits pattern, in which * stands for any characters, dots as well,
// and ? for one, as in routes: payment.* is every type that begins with "payment.". It may be called at any time, by
// handlers too, and holds for messages whose handling begins afterwards. cancel ends it likewise: a call that is under
// way goes on.
//
// The message is the bus's own copy, shared by all handlers of this call: a handler may read and keep it, and must not
// change it. A handler that returns nil accepts it. Another error refuses it, or is of class sinks.ErrPermanent or
// sinks.ErrUnavailable where it wraps one of them. A handler should return soon when ctx ends.
func (b *Bus) Subscribe(pattern string, handler func(ctx context.Context, m *sinks.Message) error) (cancel func()) {
	s := &subscription{pattern: pattern, handler: handler}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscriptions = append(slices.Clone(b.subscriptions), s)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.subscriptions = slices.DeleteFunc(slices.Clone(b.subscriptions), func(other *subscription) bool { return other == s })
	}
}

func (b *Bus) fitting(eventType string) (handlers []handler) {
	b.mu.Lock()
	all := b.subscriptions
	b.mu.Unlock()
	for _, s := range all {
		if glob.Match(s.pattern, eventType) {
			handlers = append(handlers, s.handler)
		}
	}
	return handlers
}

// result is of message index of a batch.
type result struct {
	index int
	err   error
}

// Deliver implements sinks.Sink.
func (b *Bus) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		return nil
	}
	d := busDelivery{
		bus: b, batch: batch, open: make(map[sinks.Aggregate]*chain),
		results: make(chan result, len(batch)), // no chain ever waits for us
	}
	for i := range batch {
		a := batch[i].Aggregate()
		c := d.open[a]
		if c == nil {
			c = &chain{bus: b, aggregate: a, results: d.results}
			d.open[a] = c
			d.waiting = append(d.waiting, c)
		}
		c.indexes = append(c.indexes, i)
	}
	return d.run(ctx)
}

// busDelivery is one Deliver of a Bus.
type busDelivery struct {
	bus     *Bus
	batch   []sinks.Message
	open    map[sinks.Aggregate]*chain // not all of their outcomes are known
	waiting []*chain                   // not begun
	results chan result
	errs    []error // nil while nothing has failed
}

func (d *busDelivery) run(ctx context.Context) []error {
	for len(d.open) > 0 {
		if ctx.Err() != nil {
			d.abandon(ctx)
			return d.errs
		}
		var place chan struct{}
		if len(d.waiting) > 0 {
			if d.bus.isAway() {
				d.failWaiting(errAllBusy)
				continue
			}
			place = d.bus.places
		}
		select {
		case place <- struct{}{}:
			d.begin(ctx)
		case r := <-d.results:
			d.settle(r)
		case <-ctx.Done():
		}
	}
	return d.errs
}

// begin takes the place for the chain whose turn it is.
func (d *busDelivery) begin(ctx context.Context) {
	c := d.waiting[0]
	d.waiting = d.waiting[1:]
	if !d.bus.take(c.aggregate) {
		<-d.bus.places
		d.fail(c, errBusy)
		return
	}
	// Handlers may keep what they are given, and run longer than Deliver.
	for _, i := range c.indexes {
		c.messages = append(c.messages, clone(&d.batch[i]))
	}
	go c.run(ctx)
}

func (d *busDelivery) settle(r result) {
	c := d.open[d.batch[r.index].Aggregate()]
	c.known++
	switch {
	case r.err != nil:
		d.set(r.index, r.err)
		for _, i := range c.indexes[c.known:] {
			d.set(i, sinks.ErrNotAttempted)
		}
		delete(d.open, c.aggregate)
	case c.known == len(c.indexes):
		delete(d.open, c.aggregate)
	}
}

// abandon leaves alone what still runs.
func (d *busDelivery) abandon(ctx context.Context) {
	for len(d.results) > 0 {
		d.settle(<-d.results)
	}
	why := context.Cause(ctx)
	d.failWaiting(fmt.Errorf("%w: %w", errNotCalled, why))
	for _, c := range d.open {
		d.bus.abandon(c)
		d.fail(c, fmt.Errorf("no handler has accepted it in time: %w", why))
	}
}

func (d *busDelivery) failWaiting(why error) {
	for _, c := range d.waiting {
		d.fail(c, why)
	}
	d.waiting = nil
}

// fail makes what is not known of c unavailable.
func (d *busDelivery) fail(c *chain, why error) {
	for n, i := range c.indexes[c.known:] {
		if n == 0 {
			d.set(i, fmt.Errorf("%w: %w", sinks.ErrUnavailable, why))
		} else {
			d.set(i, sinks.ErrNotAttempted)
		}
	}
	delete(d.open, c.aggregate)
}

func (d *busDelivery) set(i int, err error) {
	if d.errs == nil {
		d.errs = make([]error, len(d.batch))
	}
	d.errs[i] = err
}

// isAway tells whether all places are taken by handlers whose Deliver has returned.
func (b *Bus) isAway() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.abandoned == cap(b.places)
}

func (b *Bus) take(a sinks.Aggregate) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy[a] {
		return false
	}
	b.busy[a] = true
	return true
}

// abandon notes that nobody waits for c any more, unless it has just ended.
func (b *Bus) abandon(c *chain) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !c.ended {
		c.abandoned = true
		b.abandoned++
	}
}

// release gives back what c holds.
func (b *Bus) release(c *chain) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.ended = true
	delete(b.busy, c.aggregate)
	if c.abandoned {
		b.abandoned--
	}
	<-b.places
}

// Close reports handlers that still run though their deadline has passed: they cannot be ended.
func (b *Bus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.abandoned > 0 {
		return fmt.Errorf("%d handlers are still running though their deadline has passed", b.abandoned)
	}
	return nil
}
