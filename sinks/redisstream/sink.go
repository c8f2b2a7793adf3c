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
	// rest is how long the destination is not tried again after it has timed out as a whole.
	rest = 5 * time.Second
	// askTimeout is how long a node of a cluster may take to answer what is asked about the cluster. A node that was found away
	// may take as long to show that it is back.
	askTimeout = 2 * time.Second
	// awayTimeout is how long it may take if it was found away a short time ago, and others can be asked.
	awayTimeout = 200 * time.Millisecond
	// maxWait is how long Deliver waits for an answer if ctx has no deadline.
	maxWait = 30 * time.Second

	// maxWaveBytes limits the buffers on both sides, and the time for which one EXEC keeps the server from serving others.
	maxWaveBytes = 8 << 20
	// largeBytes is the longest field that every server accepts: proto-max-bulk-len cannot be lower. A message with a
	// longer field is the only one in its transaction, so that a refusal concerns no other message.
	largeBytes = 1 << 20
)

var (
	errResting     = errors.New("it has just timed out, and is not tried again yet")
	errNoneAnswers = errors.New("its node was found away, and no other node of the cluster answers")
)

// Sink delivers to one server or one cluster. The server need not be there when the Sink is made.
type Sink struct {
	config  Config
	open    opener
	options *redis.Options // for connections
	// Streams and nodes of a cluster, by their addresses, that were found away while the rest of the destination answered. Both
	// stay empty if there is only one topic.
	streams, nodes sinks.Away[string]
	away           away
	rest           time.Duration // the constant, except in tests

	closing sync.WaitGroup // clients that were given up

	// Free links. The one that was used last is taken first, so that no more exist than calls of Deliver run at a time.
	mu   sync.Mutex
	free []*link
}

// silenceClient keeps go-redis from printing to stderr. It has one logger for the whole process. Whatever it would print is
// in the errors of Deliver as well.
var silenceClient = sync.OnceFunc(func() { redis.SetLogger(silent{}) })

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// New checks the configuration. Only Deliver makes connections.
func New(c Config) (*Sink, error) {
	open, options, err := c.opener()
	if err != nil {
		return nil, err
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = defaultMaxMessageBytes
	}
	silenceClient()
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

// Close closes all connections. It waits, at most for some seconds, for dials that are going on.
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

// several reports whether messages go to several streams.
func (s *Sink) several() bool { return s.config.Topics == sinks.SeveralTopics }

// away remembers, for all lanes, which servers have just timed out when nothing else answered. They are not tried for a while.
// Otherwise such a server would make every batch last as long as its deadline. A server that fails fast is not remembered.
type away struct {
	mu    sync.Mutex
	until map[string]time.Time // by address; "" stands for a node that is not known
}

func (a *away) set(node string, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil {
		a.until = make(map[string]time.Time)
	}
	a.until[node] = until
}

// resting returns nil if the node may be tried.
func (a *away) resting(node string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if until, ok := a.until[node]; !ok || time.Now().After(until) {
		delete(a.until, node)
		return nil
	}
	return errResting
}

// AskNow implements sinks.Rememberer.
func (s *Sink) AskNow() {
	s.streams.AskNow()
	s.nodes.AskNow()
}
