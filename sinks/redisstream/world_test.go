package redisstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func startRedis(t testing.TB, o servers.RedisOptions) *servers.Redis {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server, err := servers.StartRedis(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

func newProxy(t testing.TB, target string) *servers.Proxy {
	t.Helper()
	p, err := servers.NewProxy(target)
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

func newSink(t testing.TB, c Config) *Sink {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	s.rest = 50 * time.Millisecond
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newClient is the test's own, which no fault befalls.
func newClient(t testing.TB, address string) *redis.Client {
	t.Helper()
	silenceClient()
	c := redis.NewClient(&redis.Options{Addr: address, Protocol: 2, DisableIdentity: true})
	t.Cleanup(func() { c.Close() })
	return c
}

var streams atomic.Int64

// newStream names one that no other test uses.
func newStream() string { return fmt.Sprint("outbox.event.test-", streams.Add(1)) }

func message(stream, aggregate, id string, payload int) sinks.Message {
	return sinks.Message{
		Event: &outbox.Event{
			ID: id, AggregateType: "Order", AggregateID: aggregate, EventType: "OrderChanged", EventVersion: 1,
			Payload: []byte(strings.Repeat("x", payload)), CreatedAt: time.Unix(1_700_000_000, 0),
		},
		Topic: stream, Key: aggregate, CommitTime: time.Now(), Attempt: 1,
	}
}

// messages are n of them, of so many aggregates in turn.
func messages(stream string, n, aggregates int) []sinks.Message {
	batch := make([]sinks.Message, n)
	for i := range batch {
		batch[i] = message(stream, fmt.Sprint("o-", i%aggregates), fmt.Sprint(i), 300)
	}
	return batch
}

func deliver(t testing.TB, s *Sink, batch ...sinks.Message) []error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	errs := s.Deliver(ctx, batch)
	if ctx.Err() != nil {
		t.Error("Deliver lasted as long as its deadline")
	}
	return errs
}

// deliverUntil tries again what was not accepted, as a lane does, until all is, and fails when that takes long.
func deliverUntil(t testing.TB, s *Sink, batch []sinks.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(batch) > 0 {
		errs := s.Deliver(ctx, batch)
		var again []sinks.Message
		for i, err := range errs {
			if err != nil {
				again = append(again, batch[i])
			}
		}
		batch = again
		if ctx.Err() != nil && len(batch) > 0 {
			t.Fatalf("%d messages are not accepted: %v", len(batch), errors.Join(errs...))
		}
		if len(batch) > 0 {
			<-time.After(20 * time.Millisecond)
		}
	}
}

func entries(t testing.TB, c redis.UniversalClient, stream string) []redis.XMessage {
	t.Helper()
	all, err := c.XRange(t.Context(), stream, "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ids are those of the events in a stream.
func ids(t testing.TB, c redis.UniversalClient, stream string) []string {
	t.Helper()
	var out []string
	for _, e := range entries(t, c, stream) {
		out = append(out, e.Values["id"].(string))
	}
	return out
}

// expectOnce checks that a stream holds the messages, once, and those of each aggregate in order.
func expectOnce(t testing.TB, c redis.UniversalClient, stream string, want []sinks.Message) {
	t.Helper()
	order := make(map[string][]string)
	for _, e := range entries(t, c, stream) {
		a := e.Values["aggregate_id"].(string)
		order[a] = append(order[a], e.Values["id"].(string))
	}
	wantOrder := make(map[string][]string)
	for _, m := range want {
		wantOrder[m.Event.AggregateID] = append(wantOrder[m.Event.AggregateID], m.Event.ID)
	}
	for a, ids := range wantOrder {
		if !slices.Equal(ids, order[a]) {
			t.Errorf("aggregate %s: want %v, got %v", a, ids, order[a])
		}
	}
	if len(order) > len(wantOrder) {
		t.Errorf("want %d aggregates, got %d", len(wantOrder), len(order))
	}
}

// classes name the errors, for comparison.
func classes(errs []error) (names []string) {
	for _, err := range errs {
		name := "refused"
		if err == nil {
			name = "accepted"
		}
		for class, n := range map[error]string{
			sinks.ErrPermanent: "permanent", sinks.ErrUnavailable: "unavailable", sinks.ErrNotAttempted: "not attempted",
			sinks.ErrTopicUnavailable: "topic",
		} {
			if errors.Is(err, class) {
				name = n
			}
		}
		if sinks.RetryAfter(err) > 0 {
			name = "put off"
		}
		names = append(names, name)
	}
	return names
}

// expectAway checks that all of a batch is unavailable, for this reason.
func expectAway(t testing.TB, errs []error, n int, reason string) {
	t.Helper()
	if len(errs) != n {
		t.Fatalf("want %d errors, got %v", n, errs)
	}
	for i, err := range errs {
		switch {
		case errors.Is(err, sinks.ErrNotAttempted) && i > 0:
		case !errors.Is(err, sinks.ErrUnavailable) || !strings.Contains(err.Error(), reason):
			t.Fatalf("error %d: want ErrUnavailable with %q, got %v", i, reason, err)
		}
	}
}
