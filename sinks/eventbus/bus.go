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

// defaultConcurrency is for how many aggregates a Bus calls handlers at a time, unless NewBus is told otherwise.
const defaultConcurrency = 16

type handler = func(ctx context.Context, m *sinks.Message) error

// Bus passes messages to handlers within the process. It is a sinks.Sink. Its methods may be called concurrently.
//
// The handlers whose patterns fit the type of an event are called one after the other, in the order in which they have
// subscribed. The message is accepted when all of them have returned nil. If there are none, it is accepted at once. If
// a handler returns an error, the ones after it are not called, and when the message comes again, all are called again.
// So handlers must be idempotent, like the consumers of every sink. Handlers get the messages of an aggregate one at a
// time and in order. They are called for several aggregates at the same time, up to a limit.
//
// If a handler goes on after its context has ended, its aggregate stays occupied: further messages of the aggregate
// fail with ErrUnavailable at once, because they must not overtake. The handler also keeps one of the places of the bus.
// If such handlers have taken all places, all messages fail with ErrUnavailable at once. What such a handler returns in
// the end does not count: its message comes again.
//
// If a handler panics, or calls runtime.Goexit, the message counts as refused.
type Bus struct {
	places chan struct{} // contains one element for each aggregate for which handlers run

	mu            sync.Mutex
	subscriptions []*subscription // replaced, never changed
	busy          map[sinks.Aggregate]bool
	abandoned     int // how many of busy still run although their Deliver has returned
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

// NewBus makes a bus that calls handlers for up to concurrency aggregates at a time. 0 stands for 16.
func NewBus(concurrency int) *Bus {
	if concurrency <= 0 {
		concurrency = defaultConcurrency
	}
	return &Bus{places: make(chan struct{}, concurrency), busy: make(map[sinks.Aggregate]bool)}
}

// Subscribe makes the bus call handler for every event whose type fits pattern. As in routes, * in a pattern stands for
// any characters, including dots, and ? for one character: payment.* fits every type that begins with "payment.".
// Subscribe may be called at any time, also by handlers. It applies to messages whose handling begins after it. cancel
// ends the subscription in the same way: a call of handler that is under way goes on.
//
// The message is a copy of the bus's own, which all handlers of the message share. A handler may read and keep it, but
// must not change it. A handler accepts the message by returning nil. An error that wraps sinks.ErrPermanent,
// sinks.ErrUnavailable or sinks.ErrTopicUnavailable belongs to that class; any other error refuses the message. If what one
// handler needs is away, and other handlers can go on, the class is ErrTopicUnavailable: ErrUnavailable leaves the whole bus
// alone for a while. A handler should return soon after ctx has ended.
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

// result is the outcome of a message.
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
		bus: b, batch: new(sinks.Batch).Begin(batch),
		results: make(chan result, len(batch)), // room for all results, so that no chain ever waits for Deliver
	}
	for _, head := range d.batch.Heads() {
		d.chains = append(d.chains, &chain{bus: b, aggregate: batch[head].Aggregate(), results: d.results, next: int(head)})
	}
	d.waiting, d.open = slices.Clone(d.chains), len(d.chains)
	return d.run(ctx)
}

// busDelivery is one call of Bus.Deliver.
type busDelivery struct {
	bus     *Bus
	batch   *sinks.Batch
	chains  []*chain // by the number of the aggregate; nil if the outcomes of all its messages are known
	open    int      // how many chains are not nil
	waiting []*chain // chains that were not begun
	results chan result
	// answered says that the handlers of some message have accepted or refused it.
	answered bool
}

func (d *busDelivery) run(ctx context.Context) []error {
	for d.open > 0 {
		if ctx.Err() != nil {
			d.abandon(ctx)
			break
		}
		var place chan struct{}
		if len(d.waiting) > 0 {
			if d.bus.isAway() {
				d.failWaiting(sinks.ErrUnavailable, errAllBusy)
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
	return d.batch.Errors()
}

// begin uses a place, which the caller has taken, for the first waiting chain.
func (d *busDelivery) begin(ctx context.Context) {
	c := d.waiting[0]
	d.waiting = d.waiting[1:]
	if !d.bus.take(c.aggregate) {
		<-d.bus.places
		d.fail(c, sinks.ErrUnavailable, errBusy)
		return
	}
	// Handlers may keep a message, and may run longer than Deliver, so they get copies.
	for i := c.next; i >= 0; i = d.batch.Next(i) {
		c.indexes = append(c.indexes, i)
		c.messages = append(c.messages, clone(&d.batch.Messages[i]))
	}
	go c.run(ctx)
}

func (d *busDelivery) settle(r result) {
	c := d.chains[d.batch.Aggregate(r.index)]
	c.next = d.batch.Next(r.index)
	d.answered = d.answered || !errors.Is(r.err, sinks.ErrUnavailable)
	switch {
	case r.err != nil:
		d.batch.FailRest(r.index, r.err)
		d.close(r.index)
	case c.next < 0:
		d.close(r.index)
	}
}

// close notes that the outcomes of all messages of the aggregate of message i are known.
func (d *busDelivery) close(i int) {
	d.chains[d.batch.Aggregate(i)] = nil
	d.open--
}

// abandon stops waiting for handlers that still run.
func (d *busDelivery) abandon(ctx context.Context) {
	for len(d.results) > 0 {
		d.settle(<-d.results)
	}
	why := context.Cause(ctx)
	class := sinks.ErrUnavailable
	if d.answered {
		class = sinks.ErrNotAttempted // there was only no time left
	}
	d.failWaiting(class, fmt.Errorf("%w: %w", errNotCalled, why))
	for _, c := range d.chains {
		if c != nil {
			d.bus.abandon(c)
			d.fail(c, sinks.ErrUnavailable, fmt.Errorf("no handler has accepted it in time: %w", why))
		}
	}
}

func (d *busDelivery) failWaiting(class, why error) {
	for _, c := range d.waiting {
		d.fail(c, class, why)
	}
	d.waiting = nil
}

// fail gives an error of this class to the messages of c whose outcome is not known.
func (d *busDelivery) fail(c *chain, class, why error) {
	d.batch.FailRest(c.next, fmt.Errorf("%w: %w", class, why))
	d.close(c.next)
}

// isAway reports whether handlers whose Deliver has returned have taken all places.
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

// abandon notes that nobody waits for c any more, unless c has just ended.
func (b *Bus) abandon(c *chain) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !c.ended {
		c.abandoned = true
		b.abandoned++
	}
}

// release gives back the place and the aggregate of c.
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

// Close returns an error if handlers still run although their deadline has passed. It cannot end them.
func (b *Bus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.abandoned > 0 {
		return fmt.Errorf("%d handlers are still running though their deadline has passed", b.abandoned)
	}
	return nil
}
