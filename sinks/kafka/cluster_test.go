package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// startFake starts a faked cluster without topics.
func startFake(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// newSink makes a sink over a network of its own, which the test may take away.
func newSink(t testing.TB, c Config) (*Sink, *network) {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	n := &network{conns: make(map[*conn]struct{})}
	if c.TLS == nil {
		s.options = append(s.options, kgo.Dialer(n.dial))
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, n
}

var topics atomic.Int64

// createTopic makes a topic of a name that no other test has.
func createTopic(t testing.TB, brokers []string, partitions int32, configs map[string]string) string {
	t.Helper()
	name := newTopicName()
	createTopicNamed(t, brokers, name, partitions, configs)
	return name
}

func newTopicName() string {
	return fmt.Sprintf("outbox.event.Order-%d-%d", os.Getpid(), topics.Add(1))
}

func createTopicNamed(t testing.TB, brokers []string, name string, partitions int32, configs map[string]string) {
	t.Helper()
	values := make(map[string]*string)
	for key, value := range configs {
		values[key] = &value
	}
	a := admin(t, brokers)
	if _, err := a.CreateTopic(t.Context(), partitions, 1, values, name); err != nil {
		t.Fatal(err)
	}
	// The controller has answered; the brokers learn of it later.
	deadline := time.Now().Add(10 * time.Second)
	for {
		listed, err := a.ListTopics(t.Context(), name)
		if err == nil && len(listed[name].Partitions) == int(partitions) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("topic %s was created and is not there: %v, %v", name, listed, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func admin(t testing.TB, brokers []string) *kadm.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

// consume reads all that a topic holds now, each partition in order.
func consume(t testing.TB, brokers []string, topic string) (records []*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ends, err := admin(t, brokers).ListEndOffsets(ctx, topic)
	if err := errors.Join(err, ends.Error()); err != nil {
		t.Fatal(err)
	}
	left := int64(0)
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%d records of %s are missing: %v", left, topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			records = append(records, r)
			left--
		})
	}
	return records
}

// ids are those of the records' events.
func ids(records []*kgo.Record) (ids []string) {
	for _, r := range records {
		ids = append(ids, headerOf(r, "id"))
	}
	return ids
}

func headerOf(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
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

// messages are n events of 500 bytes of so many aggregates in turn.
func messages(topic string, n, aggregates int) (batch []sinks.Message) {
	for i := range n {
		batch = append(batch, message(topic, fmt.Sprint("o-", i%aggregates), fmt.Sprint(i), 500))
	}
	return batch
}

// network is between the sink and the brokers.
type network struct {
	mu      sync.Mutex
	conns   map[*conn]struct{}
	away    bool
	hanging chan struct{} // nil: it does not
	only    string        // the address of the broker that goAway and hang concern; "" for all
}

func (n *network) concerns(addr string) bool { return n.only == "" || n.only == addr }

type conn struct {
	net.Conn
	n           *network
	addr        string
	interrupted chan struct{} // closed, or a deadline has passed
	once        sync.Once
}

func (n *network) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	away := n.away && n.concerns(addr)
	n.mu.Unlock()
	if away {
		return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, n: n, addr: addr, interrupted: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[c] = struct{}{}
	return c, nil
}

// goAway cuts all connections and refuses new ones.
func (n *network) goAway() (back func()) {
	n.mu.Lock()
	n.away = true
	conns := maps.Clone(n.conns)
	n.mu.Unlock()
	for c := range conns {
		if n.concerns(c.addr) {
			_ = c.Close()
		}
	}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.away = false
	}
}

// hang lets requests through, and no answers.
func (n *network) hang() (back func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hanging = make(chan struct{})
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		close(n.hanging)
		n.hanging = nil
	}
}

func (c *conn) Read(b []byte) (int, error) {
	k, err := c.Conn.Read(b)
	c.n.mu.Lock()
	hanging := c.n.hanging
	c.n.mu.Unlock()
	if hanging != nil && err == nil && c.n.concerns(c.addr) {
		select {
		case <-hanging:
		case <-c.interrupted:
			return 0, os.ErrDeadlineExceeded
		}
	}
	return k, err
}

func (c *conn) interrupt() { c.once.Do(func() { close(c.interrupted) }) }

func (c *conn) SetDeadline(t time.Time) error     { return c.setDeadline(t, c.Conn.SetDeadline) }
func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, c.Conn.SetReadDeadline) }

// setDeadline: the client uses those in the past to interrupt a Read, and closes the connection then.
func (c *conn) setDeadline(t time.Time, set func(time.Time) error) error {
	if !t.IsZero() && !t.After(time.Now()) {
		c.interrupt()
	}
	return set(t)
}

func (c *conn) Close() error {
	c.interrupt()
	c.n.mu.Lock()
	delete(c.n.conns, c)
	c.n.mu.Unlock()
	return c.Conn.Close()
}
