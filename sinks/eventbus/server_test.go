package eventbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// startServer starts a real nats-server.
func startServer(t testing.TB, o servers.NATSOptions) *servers.NATS {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // it may have to be built
	defer cancel()
	n, err := servers.StartNATS(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// newSink makes a sink of little patience.
func newSink(t testing.TB, c Config) *Sink {
	t.Helper()
	if c.CloudEvents.Source == "" {
		c.CloudEvents = format.CloudEvents{Source: "/outbox/test/{aggregate_type}"}
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	s.pause, s.silence = 400*time.Millisecond, 100*time.Millisecond
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newProxy puts one in front of n. Away and Hang are the faults of sinktest.
func newProxy(t testing.TB, n *servers.NATS) *servers.Proxy {
	t.Helper()
	p, err := servers.NewProxy(n.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func goAway(p *servers.Proxy) func() (back func()) {
	return func() func() {
		p.Refuse()
		p.Cut()
		return p.Accept
	}
}

func hang(p *servers.Proxy) func() (back func()) {
	return func() func() {
		p.Stall(servers.ToServer, servers.ToClient)
		return p.Resume
	}
}

// connect is a client of the test's own.
func connect(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

var streams atomic.Int64

// stream is one of a name and subjects that no other test has.
type stream struct {
	t       testing.TB
	subject string // and all below it
	url     string
	opts    []nats.Option
	name    string
}

func newStream(t testing.TB, url string, c jetstream.StreamConfig, opts ...nats.Option) *stream {
	t.Helper()
	n := streams.Add(1)
	s := &stream{t: t, subject: fmt.Sprintf("outbox.event.t%d", n), name: fmt.Sprintf("t%d", n), url: url, opts: opts}
	c.Name, c.Subjects = s.name, []string{s.subject, s.subject + ".>"}
	c.Storage = jetstream.FileStorage
	if _, err := s.client().CreateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stream) client() jetstream.JetStream {
	s.t.Helper()
	js, err := jetstream.New(connect(s.t, s.url, s.opts...))
	if err != nil {
		s.t.Fatal(err)
	}
	return js
}

// messages is all that the stream holds, in its order.
func (s *stream) messages() (all []*jetstream.RawStreamMsg) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := s.client().Stream(ctx, s.name)
	if err != nil {
		s.t.Fatal(err)
	}
	state := stream.CachedInfo().State
	for n := state.FirstSeq; n > 0 && n <= state.LastSeq; n++ {
		m, err := stream.GetMsg(ctx, n)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

func (s *stream) ids() (ids []string) {
	s.t.Helper()
	for _, m := range s.messages() {
		ids = append(ids, m.Header.Get(headerID))
	}
	return ids
}

// message is an event of an aggregate with a payload of that many bytes.
func message(topic, aggregate, id string, size int) sinks.Message {
	return sinks.Message{
		Event: &outbox.Event{
			ID: id, AggregateType: "Order", AggregateID: aggregate, EventType: "OrderChanged", EventVersion: 1,
			Payload: []byte(strings.Repeat("x", size)), Metadata: []byte(`{}`), CreatedAt: time.Now(),
		},
		Topic: topic, Key: aggregate, CommitTime: time.Now(), Attempt: 1,
	}
}

// messages are n events of a number of aggregates, taking turns.
func messages(topic string, n, aggregates int) (batch []sinks.Message) {
	for i := range n {
		batch = append(batch, message(topic, fmt.Sprint("o-", i%aggregates), fmt.Sprintf("%05d", i), 100))
	}
	return batch
}

// short is a context that a Deliver which fails at once does not use up.
func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually repeats what fails at first, such as a Deliver before a reconnect.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// expectAll checks that every error is of the class, and soon.
func expectAll(t testing.TB, errs []error, n int, class error) {
	t.Helper()
	if len(errs) != n {
		t.Fatalf("want %d errors, got %v", n, errs)
	}
	for i, err := range errs {
		if !errors.Is(err, class) {
			t.Errorf("message %d: want %v, got %v", i, class, err)
		}
	}
}
