package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// patience is how long a Deliver tries again after failures that may pass: the election of a leader, the restart of
	// a broker.
	patience = 2 * time.Second
	// topicPatience is the same where the sink has several topics and the cluster answers, because the lane's messages for other
	// topics wait meanwhile. Kafka moves a leader in less time. If a partition takes longer, its messages are put off for a second.
	topicPatience = 500 * time.Millisecond
	// rest is how long a place that has timed out is not tried again.
	rest = 5 * time.Second
	// maxWait is how long a broker may wait for replicas if ctx has no deadline.
	maxWait = 30 * time.Second

	// maxBatchBytes is a size that every topic accepts by default (max.message.bytes is 1,048,588). A larger record is
	// a batch by itself.
	maxBatchBytes = 1_000_000
	// maxWaveBytes limits requests and the buffers in which they are built. A larger record is a wave by itself.
	maxWaveBytes = 8 << 20
)

var errResting = errors.New("it has just timed out, and is not tried again yet")

// Sink delivers to one cluster. The brokers need not be there when the Sink is made.
type Sink struct {
	config      Config
	options     []kgo.Opt
	layout      layout
	compressor  kgo.Compressor
	partitioner kgo.Partitioner
	away        away
	topics      sinks.Away[place] // with SeveralTopics: what was away while the cluster answered

	patience, topicPatience, rest time.Duration // the constants, except in tests

	// Free producers. The one that was used last is taken first, so that no more exist than calls of Deliver run at a time.
	mu   sync.Mutex
	free []*producer
}

// New checks the configuration. Only Deliver makes connections.
func New(c Config) (*Sink, error) {
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = defaultMaxMessageBytes
	}
	layout, wrongLayout := c.layout()
	options, wrongOptions := c.options()
	wrong := []error{wrongOptions, wrongLayout}
	if c.MaxMessageBytes < 0 {
		wrong = append(wrong, sinks.FieldErrorf("max_message_bytes", "%d is negative", c.MaxMessageBytes))
	}
	codec, ok := codecs[c.Compression]
	if !ok {
		wrong = append(wrong, sinks.FieldErrorf("compression", "%q is none of none, gzip, snappy, lz4 and zstd", c.Compression))
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	compressor, err := kgo.DefaultCompressor(codec)
	if err != nil {
		return nil, err
	}
	return &Sink{
		config: c, options: options, layout: layout, compressor: compressor, patience: patience, topicPatience: topicPatience, rest: rest,
		partitioner: kgo.StickyKeyPartitioner(nil), // nil stands for murmur2, as in Java
	}, nil
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		return nil
	}
	p, err := s.take()
	if err != nil {
		errs := make([]error, len(batch))
		for i := range errs {
			errs[i] = fmt.Errorf("%w: %w", sinks.ErrUnavailable, err)
		}
		return errs
	}
	defer s.put(p)
	return p.delivery.run(ctx, p, batch)
}

// AskNow implements sinks.Rememberer.
func (s *Sink) AskNow() { s.topics.AskNow() }

func (s *Sink) take() (*producer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.free)
	if n == 0 {
		return newProducer(s)
	}
	p := s.free[n-1]
	s.free = s.free[:n-1]
	return p, nil
}

func (s *Sink) put(p *producer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, p)
}

// answered forgets that a place was away.
func (s *Sink) answered(p place) {
	s.away.clear(p)
	s.topics.Answered(p)
}

// resting returns the error of the messages for p if it must not be tried yet.
func (s *Sink) resting(p *partition) error {
	if err := s.putOff(p.place()); err != nil {
		return err
	}
	if s.away.resting(p.place()) {
		return fmt.Errorf("%w: %s: %w", sinks.ErrUnavailable, p, errResting)
	}
	return nil
}

// putOff returns the error of the messages for a place that was found away, if it is not asked again yet. If the cluster is known to
// be away as a whole, the error says that.
func (s *Sink) putOff(p place) error {
	wait := s.topics.Wait(p, time.Now())
	switch {
	case wait == 0:
		return nil
	case s.away.resting(wholeCluster):
		return fmt.Errorf("%w: the cluster: %w", sinks.ErrUnavailable, errResting)
	}
	return sinks.PutOff(wait)
}

// again returns how long p may take to answer if it was found away before, and 0 if it was not. A place that never answers
// would otherwise take up a whole Deliver each time. A place that is only slow gets more time with each try.
func (s *Sink) again(p place) time.Duration {
	rested, known := s.topics.Known(p)
	if !known {
		return 0
	}
	return max(s.patience, rested/4)
}

// restUntil returns until when a place that has timed out now is not tried again.
func (s *Sink) restUntil() time.Time { return time.Now().Add(s.rest) }

// Close closes all connections.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.free {
		p.client.Close()
	}
	s.free = nil
	return nil
}
