package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// TestApacheKafka runs the suite, and what a fake might take more lightly, against a real broker.
func TestApacheKafka(t *testing.T) {
	t.Parallel()
	broker := startBroker(t)
	t.Logf("Apache Kafka %s at %s", broker.Version(), broker.Brokers()[0])
	t.Run("conformance", func(t *testing.T) {
		runConformance(t, broker.Brokers(), func(m *sinks.Message) {
			m.CommitTime = time.Now().Add(48 * time.Hour) // message.timestamp.after.max.ms is one hour
		})
	})
	t.Run("small topic", func(t *testing.T) { smallTopic(t, broker.Brokers()) })
	t.Run("compacted topic", func(t *testing.T) { compactedTopic(t, broker.Brokers()) })
	t.Run("sequence numbers", func(t *testing.T) { sequenceNumbers(t, broker.Brokers()) })
	t.Run("CloudEvents", func(t *testing.T) { cloudEvents(t, broker.Brokers()) })
	t.Run("partitions of the console producer", func(t *testing.T) { consolePartitions(t, broker) })
	t.Run("remedy of a check", func(t *testing.T) { remedyOfCheck(t, broker) })
	t.Run("killed and paused", func(t *testing.T) { killedAndPaused(t, broker) }) // last
}

func startBroker(t *testing.T) *servers.Kafka {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	broker, err := servers.StartKafka(ctx, servers.KafkaOptions{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	return broker
}

// smallTopic: a batch that is refused as too large is sent again in smaller ones, and only a record that is too large
// by itself is refused for good.
func smallTopic(t *testing.T, brokers []string) {
	s, _ := newSink(t, Config{Brokers: brokers})
	topic := createTopic(t, brokers, 1, map[string]string{"max.message.bytes": "20000"})
	batch := messages(topic, 200, 20)
	batch[105] = message(topic, "o-5", "105", 20_000)
	errs := s.Deliver(t.Context(), batch)
	var want []string
	for i, m := range batch {
		switch aggregate := m.Key; {
		case i == 105:
			if errs == nil || !errors.Is(errs[i], sinks.ErrPermanent) {
				t.Fatalf("a record larger than the topic takes: want ErrPermanent, got %v", errs)
			}
		case i > 105 && aggregate == "o-5":
			if !errors.Is(errs[i], sinks.ErrNotAttempted) {
				t.Errorf("event %d: want ErrNotAttempted, got %v", i, errs[i])
			}
		default:
			want = append(want, m.Event.ID)
			if errs != nil && errs[i] != nil {
				t.Errorf("event %d: %v", i, errs[i])
			}
		}
	}
	got := ids(consume(t, brokers, topic))
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// compactedTopic: a record without a key is refused there, and condemns none of its batch.
func compactedTopic(t *testing.T, brokers []string) {
	s, _ := newSink(t, Config{Brokers: brokers})
	topic := createTopic(t, brokers, 1, map[string]string{"cleanup.policy": "compact"})
	batch := messages(topic, 50, 50)
	batch[33].Key = ""
	for i, err := range s.Deliver(t.Context(), batch) {
		if want := i == 33; want != errors.Is(err, sinks.ErrPermanent) || !want && err != nil {
			t.Errorf("event %d: %v", i, err)
		}
	}
	if n := len(consume(t, brokers, topic)); n != 49 {
		t.Errorf("%d of 49 events arrived", n)
	}
}

// sequenceNumbers begin at 0 again behind 2³¹ − 1. (kfake counts one less.)
func sequenceNumbers(t *testing.T, brokers []string) {
	s, _ := newSink(t, Config{Brokers: brokers})
	topic := createTopic(t, brokers, 1, nil)
	batch := messages(topic, 10, 5)
	if errs := s.Deliver(t.Context(), batch); errs != nil {
		t.Fatal(errs)
	}
	p := s.free[0]
	p.id += 1_000_000 // one that the broker does not know may begin anywhere
	p.topics[topic].partitions[0].sequence = math.MaxInt32 - 4
	generation := p.generation
	for range 2 {
		if errs := s.Deliver(t.Context(), batch); errs != nil {
			t.Fatal(errs)
		}
	}
	if n := p.topics[topic].partitions[0].sequence; n != 15 || p.generation != generation {
		t.Errorf("want sequence number 15, got %d; renumbered %t", n, p.generation != generation)
	}
	if n := len(consume(t, brokers, topic)); n != 30 {
		t.Errorf("%d of 30 records arrived", n)
	}
}

// killedAndPaused: a lane goes on while the broker is killed, started, paused and resumed; nothing is lost, and each
// aggregate is in order.
func killedAndPaused(t *testing.T, broker *servers.Kafka) {
	s, _ := newSink(t, Config{Brokers: broker.Brokers()})
	s.patience, s.rest = patience, rest
	topic := createTopic(t, broker.Brokers(), 3, nil)
	all := messages(topic, 3000, 50)
	for i := range all {
		all[i].Event.ID = fmt.Sprintf("%04d", i)
	}
	troubles := []func() error{
		broker.Kill,
		func() error { return broker.Start(t.Context()) },
		broker.Pause,
		broker.Resume,
		func() error { return broker.Stop(t.Context()) },
		func() error { return broker.Start(t.Context()) },
	}
	rounds := 0
	deadline := time.Now().Add(2 * time.Minute)
	for rest := all; len(rest) > 0; rounds++ {
		n := min(100, len(rest))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		began := time.Now()
		errs := s.Deliver(ctx, rest[:n])
		cancel()
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("round %d took %v", rounds, took)
		}
		rest = slices.Concat(sinktest.NotAccepted(t, rest[:n], errs), rest[n:])
		if len(troubles) > 0 && rounds%4 == 3 {
			if err := troubles[0](); err != nil {
				t.Fatal(err)
			}
			troubles = troubles[1:]
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events are left: %v", len(rest), errors.Join(errs...))
		}
	}
	if len(troubles) > 0 {
		t.Errorf("%d troubles are left: the load was too small", len(troubles))
	}
	first := make(map[string][]string)
	seen := make(map[string]bool)
	for _, r := range consume(t, broker.Brokers(), topic) {
		if id := headerOf(r, "id"); !seen[id] {
			seen[id] = true
			first[string(r.Key)] = append(first[string(r.Key)], id)
		}
	}
	if len(seen) != len(all) {
		t.Errorf("%d of %d events arrived", len(seen), len(all))
	}
	for aggregate, ids := range first {
		if !slices.IsSorted(ids) {
			t.Errorf("aggregate %s: %s", aggregate, strings.Join(ids, " "))
		}
	}
}
