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
	// patience is how long a Deliver waits for what may pass: a leader's election, a broker's restart.
	patience = 2 * time.Second
	// rest is how long what has timed out is not tried.
	rest = 5 * time.Second
	// maxWait is how long a broker may wait for replicas where ctx has no deadline.
	maxWait = 30 * time.Second

	// maxBatchBytes is what every topic takes by default (max.message.bytes is 1,048,588). One larger record goes alone.
	maxBatchBytes = 1_000_000
	// maxWaveBytes keeps requests, and the buffers they are built in, small. One larger record goes alone.
	maxWaveBytes = 8 << 20
)

var errResting = errors.New("it has just timed out, and is not tried again yet")

// Sink delivers to one cluster. The brokers need not be up when it is made.
type Sink struct {
	config      Config
	options     []kgo.Opt
	layout      layout
	compressor  kgo.Compressor
	partitioner kgo.Partitioner
	away        away

	patience, rest time.Duration // the constants, but in tests

	// free producers. The last one used comes first, so that there are as many as Delivers run at a time.
	mu   sync.Mutex
	free []*producer
}

// New checks the configuration. Connections are made by Deliver.
func New(c Config) (*Sink, error) {
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = defaultMaxMessageBytes
	}
	if c.MaxMessageBytes < 0 {
		return nil, fmt.Errorf("max message bytes %d is negative", c.MaxMessageBytes)
	}
	layout, err := c.layout()
	if err != nil {
		return nil, err
	}
	codec, ok := codecs[c.Compression]
	if !ok {
		return nil, fmt.Errorf("compression %q is none of none, gzip, snappy, lz4 and zstd", c.Compression)
	}
	compressor, err := kgo.DefaultCompressor(codec)
	if err != nil {
		return nil, err
	}
	options, err := c.options()
	if err != nil {
		return nil, err
	}
	return &Sink{
		config: c, options: options, layout: layout, compressor: compressor, patience: patience, rest: rest,
		partitioner: kgo.StickyKeyPartitioner(nil), // nil: murmur2, as in Java
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

// restUntil is until when something is not tried that has timed out now.
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
