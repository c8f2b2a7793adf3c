package eventbus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

const (
	// pause is how long a connection is kept whose user may not receive acknowledgements, before the next one is made.
	pause = 5 * time.Second
	// patience is how long a message may be on the wire without an answer while JetStream answers others. JetStream itself may
	// take a quarter of it. A stream that is only slow must not be given up: what it accepts afterwards comes again.
	patience = 4 * time.Second
	// silence is how long a message must have been on the wire when the deadline comes for its subject to count as away.
	silence = time.Second
	// maxAirBytes is how much a Deliver may have on the wire. A larger message is sent when nothing else is on the wire.
	maxAirBytes = 1 << 20
	// headerRoom is the size that headers are assumed to have there. Their true size is known only when they are made.
	headerRoom = 600
	// queued is how many frames the queue holds. A lane that finds the queue full waits until the connection has taken
	// some.
	queued = 1024
)

// Sink delivers to NATS JetStream. The servers need not be there when the Sink is made. Its methods may be called
// concurrently, except for Close, which is called after the last Deliver has returned.
type Sink struct {
	url         string
	stream      string
	options     []nats.Option
	inbox       string // the subjects of all answers begin with this
	cloudEvents format.CloudEvents

	topics sinks.Topics

	pause, patience, silence time.Duration // the constants, except in tests

	begin sync.Once
	stop  chan struct{} // closed by Close
	done  chan struct{} // closed when run has ended
	tried chan struct{} // closed when the first attempt to connect has ended
	queue chan frame    // from Deliver to run

	mu         sync.Mutex
	session    *natsConnection // nil if there is no connection
	lastErr    error           // why there is no connection
	wasTried   bool            // tried was closed
	number     uint64          // of the last Deliver
	deliveries map[uint64]*delivery
	batches    []*sinks.Batch // of Delivers that have ended, for the next ones
}

// New checks the configuration, and reads the NKey file for the public key. The first Deliver makes the connection.
func New(c Config) (*Sink, error) {
	wrong := []error{c.checkURL(), c.CloudEvents.Validate()}
	prefix := c.InboxPrefix
	if prefix == "" {
		prefix = "_INBOX"
	} else if err := checkTokens(prefix); err != nil {
		wrong = append(wrong, &sinks.FieldError{Field: "inbox_prefix", Err: err})
	}
	options, err := c.options()
	if err := errors.Join(append(wrong, err)...); err != nil {
		return nil, err
	}
	return &Sink{
		url: c.URL, stream: c.Stream, options: options, inbox: prefix + "." + nuid.Next() + ".", cloudEvents: c.CloudEvents,
		topics: c.Topics, pause: pause, patience: patience, silence: silence,
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
	d := newDelivery(s, s.takeBatch().Begin(batch))
	s.register(d)
	defer s.forget(d)
	return d.run(ctx)
}

func (s *Sink) takeBatch() *sinks.Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.batches)
	if n == 0 {
		return new(sinks.Batch)
	}
	b := s.batches[n-1]
	s.batches = s.batches[:n-1]
	return b
}

// register gives d a number, and the present connection.
func (s *Sink) register(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	d.number, d.session, d.whyNone = s.number, s.session, s.lastErr
	if d.session != nil {
		d.heardBefore = d.session.heard.Load()
		d.heardLook = d.heardBefore
	}
	s.deliveries[d.number] = d
}

// forget makes run drop the frames of d that are still in the queue. The batch of d is for the next Deliver.
func (s *Sink) forget(d *delivery) {
	d.over.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.deliveries, d.number)
	s.batches = append(s.batches, d.batch)
}

// Close ends the connection. It waits for a dial or a write that is under way, at most a few seconds.
func (s *Sink) Close() error {
	s.begin.Do(func() { close(s.done) })
	close(s.stop)
	<-s.done
	return nil
}

// AskNow implements sinks.Rememberer.
func (s *Sink) AskNow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		s.session.away.AskNow()
	}
}
