package redisstream

import (
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// BenchmarkDeliver measures the rate of events of 490 incompressible bytes with all columns, by four lanes beside a
// server that keeps nothing on disk; and how long a small batch takes.
func BenchmarkDeliver(b *testing.B) {
	server := startRedis(b, servers.RedisOptions{Settings: map[string]string{"appendonly": "no"}})
	b.Run("four lanes, batches of 500", func(b *testing.B) { benchmarkLanes(b, server, 4, 500) })
	b.Run("one lane, batches of 500", func(b *testing.B) { benchmarkLanes(b, server, 1, 500) })
	b.Run("one lane, batches of 10", func(b *testing.B) { benchmarkLanes(b, server, 1, 10) })
}

func benchmarkLanes(b *testing.B, server *servers.Redis, lanes, n int) {
	s := newSink(b, Config{URL: server.URL(), MaxLen: 10_000})
	batches := make([][]sinks.Message, lanes)
	for i := range batches {
		batches[i] = benchmarkBatch(n, fmt.Sprint("lane-", i))
		if errs := s.Deliver(b.Context(), batches[i]); errs != nil {
			b.Fatal(errs)
		}
	}
	took := make([][]time.Duration, lanes)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for range b.N {
				began := time.Now()
				if errs := s.Deliver(b.Context(), batches[lane]); errs != nil {
					b.Error(errs)
					return
				}
				took[lane] = append(took[lane], time.Since(began))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(len(all)*n)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
}

func benchmarkBatch(n int, lane string) []sinks.Message {
	batch := make([]sinks.Message, n)
	for i := range batch {
		payload := make([]byte, 490)
		_, _ = rand.Read(payload) // never fails
		key := fmt.Sprint(lane, "-order-", i%97)
		batch[i] = sinks.Message{
			Event: &outbox.Event{
				ID: fmt.Sprintf("0190f5a0-0000-7000-8000-%012d", i), AggregateType: "Order", AggregateID: key,
				EventType: "OrderPlaced", EventVersion: 1, Payload: payload, Metadata: []byte(`{"user": "u-1", "source": "checkout"}`),
				TenantID: "tenant-1", CorrelationID: "correlation-1", CausationID: "causation-1", CreatedAt: time.Now(),
			},
			Topic: "outbox.event.Order", Key: key, CommitTime: time.Now(),
		}
	}
	return batch
}
