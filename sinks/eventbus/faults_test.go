package eventbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// TestKilledAndRestarted: a lane goes on while the server is killed, paused and stopped; nothing is lost, nothing is
// twice (the server keeps ids over a crash), and each aggregate is in order.
func TestKilledAndRestarted(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{}) // synced: what it acknowledged outlives a crash
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	s := newSink(t, Config{URL: n.URL()})
	all := messages(stream.subject, 3000, 50)
	troubles := []func() error{
		n.Kill,
		func() error { return n.Start(t.Context()) },
		n.Pause,
		n.Resume,
		func() error { return n.Stop(t.Context()) },
		func() error { return n.Start(t.Context()) },
		n.Kill,
		func() error { return n.Start(t.Context()) },
	}
	deadline := time.Now().Add(2 * time.Minute)
	rounds := 0
	for rest := all; len(rest) > 0; rounds++ {
		count := min(100, len(rest))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		began := time.Now()
		var mishap chan error
		if len(troubles) > 0 && rounds%3 == 2 { // in the middle of a Deliver
			trouble := troubles[0]
			troubles = troubles[1:]
			mishap = make(chan error, 1)
			go func() { mishap <- trouble() }()
		}
		errs := s.Deliver(ctx, rest[:count])
		cancel()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("round %d took %v", rounds, took)
		}
		if mishap != nil {
			if err := <-mishap; err != nil {
				t.Fatal(err)
			}
		}
		rest = slices.Concat(sinktest.NotAccepted(t, rest[:count], errs), rest[count:])
		if time.Now().After(deadline) {
			t.Fatalf("%d events are left: %v", len(rest), errors.Join(errs...))
		}
		if errs != nil {
			<-time.After(20 * time.Millisecond) // as a lane, which does not repeat at once what failed at once
		}
	}
	if len(troubles) > 0 {
		t.Errorf("%d troubles are left: the load was too small", len(troubles))
	}
	order := make(map[string][]string)
	for _, m := range stream.messages() {
		aggregate := m.Header["ce-subject"][0]
		order[aggregate] = append(order[aggregate], m.Header.Get(headerID))
	}
	total := 0
	for aggregate, ids := range order {
		total += len(ids)
		if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
			t.Errorf("aggregate %s: %v", aggregate, ids)
		}
	}
	if total != len(all) {
		t.Errorf("%d of %d events arrived", total, len(all))
	}
}

// TestDuplicate: what the stream has already is accepted.
func TestDuplicate(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	s := newSink(t, Config{URL: n.URL()})
	batch := messages(stream.subject, 10, 3)
	for range 2 {
		if errs := s.Deliver(short(t), batch); errs != nil {
			t.Fatal(errs)
		}
	}
	if got := len(stream.messages()); got != len(batch) {
		t.Errorf("%d events are there, want %d", got, len(batch))
	}
}

// TestStreamsThatRefuse: of each aggregate there is a prefix, and the reason says what to do.
func TestStreamsThatRefuse(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	t.Run("full", func(t *testing.T) {
		t.Parallel()
		stream := newStream(t, n.URL(), jetstream.StreamConfig{MaxMsgs: 10, Discard: jetstream.DiscardNew})
		s := newSink(t, Config{URL: n.URL()})
		batch := messages(stream.subject, 40, 3)
		errs := s.Deliver(short(t), batch)
		expectRefused(t, batch, errs, stream.ids(), 10, "raise its limits")
		for len(errs) > 0 { // until all are through, ten by ten
			st, err := stream.client().Stream(t.Context(), stream.name)
			if err != nil {
				t.Fatal(err)
			}
			if err := st.Purge(t.Context()); err != nil {
				t.Fatal(err)
			}
			var rest []sinks.Message
			for i, err := range errs {
				if err != nil {
					rest = append(rest, batch[i])
				}
			}
			batch = rest
			errs = s.Deliver(short(t), batch)
			expectRefused(t, batch, errs, stream.ids(), min(10, len(batch)), "raise its limits")
		}
	})
	t.Run("no stream", func(t *testing.T) {
		t.Parallel()
		s := newSink(t, Config{URL: n.URL()})
		batch := messages("nobody.takes.it", 40, 3)
		expectRefused(t, batch, s.Deliver(short(t), batch), nil, 0, "no stream takes it")
	})
	t.Run("another stream", func(t *testing.T) {
		t.Parallel()
		stream := newStream(t, n.URL(), jetstream.StreamConfig{})
		s := newSink(t, Config{URL: n.URL(), Stream: "orders"})
		batch := messages(stream.subject, 40, 3)
		expectRefused(t, batch, s.Deliver(short(t), batch), stream.ids(), 0, "than the configured one")
	})
	t.Run("somebody else answers", func(t *testing.T) {
		t.Parallel()
		nc := connect(t, n.URL())
		if _, err := nc.Subscribe("echo.>", func(m *nats.Msg) {
			for range 3 {
				_ = m.Respond([]byte("hello"))
			}
		}); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		s := newSink(t, Config{URL: n.URL()})
		batch := messages("echo.this", 40, 3)
		expectRefused(t, batch, s.Deliver(short(t), batch), nil, 0, "something else than a stream")
	})
	t.Run("too large", func(t *testing.T) {
		t.Parallel()
		stream := newStream(t, n.URL(), jetstream.StreamConfig{MaxMsgSize: 2000})
		s := newSink(t, Config{URL: n.URL()})
		batch := messages(stream.subject, 6, 6)
		batch[1].Event.Payload = make([]byte, 3000)                  // says the stream
		batch[3].Event.Payload = make([]byte, 1<<20)                 // says the server (max_payload, 1 MB)
		batch[5].Event.TenantID = strings.Repeat("tenant", 70<<10/6) // the headers' limit is 64 KB
		for i, err := range s.Deliver(short(t), batch) {
			if wrong := i%2 == 1; wrong != errors.Is(err, sinks.ErrPermanent) || !wrong && err != nil {
				t.Errorf("message %d: %v", i, err)
			}
		}
		if got := len(stream.ids()); got != 3 {
			t.Errorf("%d of 3 events arrived", got)
		}
	})
}

// expectRefused checks that accepted messages of the batch are in the stream, as many as said, and that the first of
// each aggregate that is not was refused for the reason.
func expectRefused(t *testing.T, batch []sinks.Message, errs []error, stream []string, accepted int, reason string) {
	t.Helper()
	failed := make(map[string]bool)
	n := 0
	for i, m := range batch {
		var err error
		if errs != nil {
			err = errs[i]
		}
		switch a := m.Event.AggregateID; {
		case err == nil:
			n++
			if failed[a] || !slices.Contains(stream, m.Event.ID) {
				t.Errorf("event %s was accepted; behind a failure: %t; in the stream: %v", m.Event.ID, failed[a], stream)
			}
		case failed[a]:
			if !errors.Is(err, sinks.ErrNotAttempted) {
				t.Errorf("event %s: %v", m.Event.ID, err)
			}
		default:
			failed[a] = true
			if !errors.Is(err, sinks.ErrUnavailable) || !strings.Contains(err.Error(), reason) {
				t.Errorf("event %s: want %q, got %v", m.Event.ID, reason, err)
			}
		}
	}
	if n != accepted || len(stream) != accepted {
		t.Errorf("want %d accepted events, got %d, and %d in the stream", accepted, n, len(stream))
	}
}

// TestOneOfAnAggregateOnTheWire: whatever the batch.
func TestOneOfAnAggregateOnTheWire(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	nc := connect(t, n.URL())
	open := make(map[string]string)
	most, wrong := 0, ""
	if _, err := nc.Subscribe("wire.>", func(m *nats.Msg) { // answers the first when there are ten, then each at once
		a := m.Header["ce-subject"][0]
		if open[a] != "" {
			wrong = a
		}
		open[a] = m.Reply
		most = max(most, len(open))
		if len(open) < 10 && most < 10 {
			return
		}
		for a, reply := range open {
			delete(open, a)
			_ = nc.Publish(reply, []byte(`{"stream":"S","seq":1}`))
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	s := newSink(t, Config{URL: n.URL()})
	if errs := s.Deliver(short(t), messages("wire.a", 500, 10)); errs != nil {
		t.Error(errs)
	}
	if err := nc.Drain(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "drain", func() error {
		if !nc.IsClosed() {
			return errors.New("it is open")
		}
		return nil
	})
	if most != 10 || wrong != "" {
		t.Errorf("%d aggregates at a time, want 10; two messages at a time of %q", most, wrong)
	}
}

// TestLargeMessages, of which there are more than may be on the wire at a time.
func TestLargeMessages(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{SyncInterval: "1m"})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	s := newSink(t, Config{URL: n.URL()})
	var batch []sinks.Message
	for i := range 60 {
		batch = append(batch, message(stream.subject, fmt.Sprint("o-", i%20), fmt.Sprint(i), []int{10, 300_000, 1_040_000}[i%3]))
	}
	if errs := s.Deliver(short(t), batch); errs != nil {
		t.Fatal(errs)
	}
	if got := len(stream.messages()); got != 60 {
		t.Errorf("%d of 60 events arrived", got)
	}
}

// TestServerThatIsAway from the beginning: Deliver fails soon, at once after the first, and finds it when it is there.
func TestServerThatIsAway(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{})
	proxy := newProxy(t, n)
	batch := messages(stream.subject, 6, 3)
	for name, fault := range map[string]func() (back func()){"refuses": goAway(proxy), "hangs": hang(proxy)} {
		back := fault()
		s := newSink(t, Config{URL: "nats://" + proxy.Addr()})
		errs := s.Deliver(short(t), batch)
		for i, err := range errs {
			if !errors.Is(err, sinks.ErrUnavailable) && !errors.Is(err, sinks.ErrNotAttempted) || !strings.Contains(errs[0].Error(), "not connected") {
				t.Errorf("%s: event %d: %v", name, i, err)
			}
		}
		began := time.Now()
		if errs := s.Deliver(short(t), batch); errs == nil || time.Since(began) > 500*time.Millisecond {
			t.Errorf("%s: the second Deliver took %v: %v", name, time.Since(began), errs)
		}
		back()
		eventually(t, name, func() error { return errors.Join(s.Deliver(short(t), batch)...) })
	}
}
