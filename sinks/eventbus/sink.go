package eventbus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

const (
	// rest is how long a subject whose stream did not answer is not tried.
	rest = 5 * time.Second
	// silence is how long, at least, no answer must have come before a deadline is the stream's fault.
	silence = time.Second
	// maxAirBytes is what a Deliver has on the wire. One larger message goes alone.
	maxAirBytes = 1 << 20
	// headerRoom is what headers count there; their true size is known when they are made.
	headerRoom = 600
	// queued frames at most: a lane that finds the queue full waits for the connection to take some.
	queued = 1024
)

// Sink delivers to NATS JetStream. The servers need not be up when it is made. Its methods are safe for concurrent use
// but for Close, which comes after the last Deliver.
type Sink struct {
	url         string
	stream      string
	options     []nats.Option
	inbox       string // what the subjects of all answers begin with
	cloudEvents format.CloudEvents

	rest, silence time.Duration // the constants, but in tests

	begin sync.Once
	stop  chan struct{} // closed by Close
	done  chan struct{} // closed when run has ended
	tried chan struct{} // closed when the first attempt to connect has ended
	queue chan frame    // to run

	mu         sync.Mutex
	session    *session // nil while there is no connection
	lastErr    error    // why there is none
	wasTried   bool     // tried is closed
	number     uint64   // of the last Deliver
	deliveries map[uint64]*delivery
}

// New checks the configuration and reads an NKey's public half. The connection is made by the first Deliver.
func New(c Config) (*Sink, error) {
	if err := c.checkURL(); err != nil {
		return nil, err
	}
	if err := c.CloudEvents.Validate(); err != nil {
		return nil, err
	}
	prefix := c.InboxPrefix
	if prefix == "" {
		prefix = "_INBOX"
	} else if err := checkTokens(prefix); err != nil {
		return nil, fmt.Errorf("inbox prefix: %w", err)
	}
	options, err := c.options()
	if err != nil {
		return nil, err
	}
	return &Sink{
		url: c.URL, stream: c.Stream, options: options, inbox: prefix + "." + nuid.Next() + ".", cloudEvents: c.CloudEvents,
		rest: rest, silence: silence,
		stop: make(chan struct{}), done: make(chan struct{}), tried: make(chan struct{}),
		queue:      make(chan frame, queued),
		deliveries: make(map[uint64]*delivery),
	}, nil
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		return nil
	}
	s.begin.Do(func() { go s.run() })
	select {
	case <-s.tried:
	case <-ctx.Done():
	}
	d := newDelivery(s, batch)
	s.register(d)
	defer s.forget(d)
	return d.run(ctx)
}

// register gives d its number, and the connection that there is.
func (s *Sink) register(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	d.number, d.session, d.whyNone = s.number, s.session, s.lastErr
	s.deliveries[d.number] = d
}

// forget makes run leave out what d has in the queue.
func (s *Sink) forget(d *delivery) {
	d.over.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.deliveries, d.number)
}

// Close ends the connection. It may take as long as a dial or a write that is under way, a few seconds at most.
func (s *Sink) Close() error {
	s.begin.Do(func() { close(s.done) })
	close(s.stop)
	<-s.done
	return nil
}
