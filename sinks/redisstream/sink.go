package redisstream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// rest is how long what has timed out is not tried.
	rest = 5 * time.Second
	// maxWait is how long an answer is waited for where ctx has no deadline.
	maxWait = 30 * time.Second

	// maxWaveBytes keeps buffers small on both sides, and the time for which one EXEC keeps the server from others.
	maxWaveBytes = 8 << 20
	// largeBytes is what every server takes: proto-max-bulk-len is never set lower. A message with a larger field is alone
	// in its transaction, so that a refusal is about no other.
	largeBytes = 1 << 20
)

var errResting = errors.New("it has just timed out, and is not tried again yet")

// Sink delivers to one server, or one cluster. It need not be up when the sink is made.
type Sink struct {
	config  Config
	open    opener
	options *redis.Options // of a connection
	away    away
	rest    time.Duration // the constant, but in tests

	closing sync.WaitGroup // clients that were given up

	// free links. The last one used comes first, so that there are as many as Delivers run at a time.
	mu   sync.Mutex
	free []*link
}

// silence keeps go-redis, which has one logger for the whole process, from printing to stderr: all that it has to say
// is in the errors of Deliver too.
var silence = sync.OnceFunc(func() { redis.SetLogger(silent{}) })

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// New checks the configuration. Connections are made by Deliver.
func New(c Config) (*Sink, error) {
	open, options, err := c.opener()
	if err != nil {
		return nil, err
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = defaultMaxMessageBytes
	}
	silence()
	return &Sink{config: c, open: open, options: options, rest: rest}, nil
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		return nil
	}
	l := s.take()
	defer s.put(l)
	return l.delivery.run(ctx, l, batch)
}

func (s *Sink) take() *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.free)
	if n == 0 {
		return &link{sink: s}
	}
	l := s.free[n-1]
	s.free = s.free[:n-1]
	return l
}

func (s *Sink) put(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, l)
}

// Close closes all connections. It waits, for some seconds at most, for dials that are going on.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.free {
		l.giveUp()
	}
	s.free = nil
	s.closing.Wait()
	return nil
}

// away remembers, for all lanes, which nodes have just timed out: they are not tried for a while, or one of them would
// make every batch last as long as its deadline. What fails fast needs no memory.
type away struct {
	mu    sync.Mutex
	until map[string]time.Time // by address; "" is where the node is not known
}

func (a *away) set(node string, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil {
		a.until = make(map[string]time.Time)
	}
	a.until[node] = until
}

// resting is nil when node may be tried.
func (a *away) resting(node string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if until, ok := a.until[node]; !ok || time.Now().After(until) {
		delete(a.until, node)
		return nil
	}
	return errResting
}
