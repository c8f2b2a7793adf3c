package eventbus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// TestConnectionThatIsSilent is lost when pings are not answered: from then on Deliver fails at once. Until then it ends
// with its deadline, also where so much is on the way that the client's writes block.
func TestConnectionThatIsSilent(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{SyncInterval: "1m"})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	proxy := newProxy(t, n)
	s := newSink(t, Config{URL: "nats://" + proxy.Addr()})
	s.options = append(s.options, nats.PingInterval(500*time.Millisecond))
	var batch []sinks.Message
	for i := range 40 {
		batch = append(batch, message(stream.subject, fmt.Sprint("o-", i), fmt.Sprint(i), 900_000))
	}
	if errs := s.Deliver(short(t), batch[:1]); errs != nil {
		t.Fatal(errs)
	}
	back := hang(proxy)()
	eventually(t, "it is known to be away", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		errs := s.Deliver(ctx, batch)
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %v", took)
		}
		expectAll(t, errs, len(batch), sinks.ErrUnavailable)
		if !strings.Contains(errs[0].Error(), "not connected") {
			return errs[0]
		}
		return nil
	})
	back()
	eventually(t, "it is back", func() error { return errors.Join(s.Deliver(short(t), batch[:1])...) }) // all of it takes a busy machine long
}

// TestLostWithAFullQueue: what is not even queued when the connection is lost is not accepted.
func TestLostWithAFullQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{URL: "nats://a", CloudEvents: format.CloudEvents{Source: "/test"}})
		if err != nil {
			t.Fatal(err)
		}
		s.begin.Do(func() {}) // nobody takes from the queue
		s.queue = make(chan frame, 1)
		s.session = &natsConnection{maxPayload: 1000, lost: make(chan struct{})}
		close(s.tried)
		for range 2 { // with one in the queue, and with none
			batch := messages("a", 3, 3)
			errs := make(chan []error)
			go func() { errs <- s.Deliver(context.Background(), batch) }()
			synctest.Wait()
			s.disconnected(errors.New("reset"))
			expectAll(t, <-errs, len(batch), sinks.ErrUnavailable)
			s.session = &natsConnection{maxPayload: 1000, lost: make(chan struct{})}
		}
	})
}

// TestClientThatGaveUp is replaced: nats.go takes an error that it does not know as final.
func TestClientThatGaveUp(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	connects := make(chan int, 10)
	go func() {
		for i := 0; ; i++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprint(conn, "INFO {\"max_payload\":1000,\"headers\":true}\r\n")
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					switch word, _, _ := strings.Cut(lines.Text(), " "); word {
					case "PING":
						fmt.Fprint(conn, "PONG\r\n")
					case "SUB":
						connects <- i
						fmt.Fprint(conn, "-ERR 'Whatever That Is'\r\n")
					}
				}
			}()
		}
	}()
	s := newSink(t, Config{URL: "nats://" + listener.Addr().String()})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if errs := s.Deliver(ctx, messages("a", 1, 1)); errs == nil {
		t.Error("accepted")
	}
	for want := range 2 {
		select {
		case got := <-connects:
			if got != want {
				t.Errorf("connection %d, want %d", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no other connection was made")
		}
	}
}

// TestNothingIsLeft of a sink that was closed, not even when a Deliver had to give up. It runs alone, as it counts
// goroutines.
func TestNothingIsLeft(t *testing.T) {
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	proxy := newProxy(t, n)
	before := goleak.IgnoreCurrent()
	if s, err := New(Config{URL: n.URL(), CloudEvents: newSink(t, Config{URL: n.URL()}).cloudEvents}); err != nil || s.Close() != nil {
		t.Fatal(err)
	}
	s, err := New(Config{URL: "nats://" + proxy.Addr(), CloudEvents: newSink(t, Config{URL: n.URL()}).cloudEvents})
	if err != nil {
		t.Fatal(err)
	}
	batch := messages(stream.subject, 50, 5)
	if errs := s.Deliver(short(t), batch); errs != nil {
		t.Fatal(errs)
	}
	back := hang(proxy)()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if errs := s.Deliver(ctx, batch); errs == nil {
		t.Error("accepted by a server that hangs")
	}
	s.mu.Lock()
	if len(s.deliveries) != 0 {
		t.Errorf("%d Delivers are kept", len(s.deliveries))
	}
	s.mu.Unlock()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	back()
	proxy.Cut()
	goleak.VerifyNone(t, before)
}
