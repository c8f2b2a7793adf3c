package eventbus

import (
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// BenchmarkDeliver: four lanes of 500 messages of 500 bytes, each of another aggregate and then of 50, to a stream on
// files, synced by the server every two minutes (its default) or for each message.
func BenchmarkDeliver(b *testing.B) {
	for _, c := range []struct {
		sync       string
		aggregates int
	}{{"2m", 500}, {"2m", 50}, {"always", 500}} {
		b.Run(fmt.Sprint("sync ", c.sync, ", aggregates ", c.aggregates), func(b *testing.B) {
			const lanes, size = 4, 500
			s, subject := benchmarkSink(b, c.sync)
			batches := make([][]sinks.Message, lanes)
			number := 0
			before := cpuTime(b)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for lane := range batches {
					batches[lane] = benchmarkBatch(subject, lane, size, c.aggregates, &number)
				}
				b.StartTimer()
				var all sync.WaitGroup
				for _, batch := range batches {
					all.Go(func() {
						if errs := s.Deliver(b.Context(), batch); errs != nil {
							b.Error(errs)
						}
					})
				}
				all.Wait()
			}
			events := float64(b.N * lanes * size)
			b.ReportMetric(events/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/events, "cpu-ns/event")
		})
	}
}

// BenchmarkSmallBatches: 2,000 messages a second in batches of five, by four lanes, each batch at its time.
func BenchmarkSmallBatches(b *testing.B) {
	for _, interval := range []string{"2m", "always"} {
		b.Run("sync "+interval, func(b *testing.B) {
			const lanes, size, rate = 4, 5, 2000
			s, subject := benchmarkSink(b, interval)
			var took [lanes][]time.Duration
			var all sync.WaitGroup
			for lane := range lanes {
				all.Go(func() {
					number := lane << 40
					tick := time.NewTicker(time.Second * lanes * size / rate)
					defer tick.Stop()
					for range max(b.N/lanes/size, 1) {
						<-tick.C
						batch := benchmarkBatch(subject, lane, size, 97, &number)
						began := time.Now()
						if errs := s.Deliver(b.Context(), batch); errs != nil {
							b.Error(errs)
						}
						took[lane] = append(took[lane], time.Since(began))
					}
				})
			}
			all.Wait()
			times := slices.Concat(took[:]...)
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

func benchmarkSink(b *testing.B, interval string) (s *Sink, subject string) {
	b.Helper()
	n := startServer(b, servers.NATSOptions{SyncInterval: interval})
	stream := newStream(b, n.URL(), jetstream.StreamConfig{})
	s = newSink(b, Config{URL: n.URL()})
	if errs := s.Deliver(b.Context(), messages(stream.subject, 1, 1)); errs != nil { // connects
		b.Fatal(errs)
	}
	return s, stream.subject
}

// benchmarkBatch has new ids, which number counts.
func benchmarkBatch(subject string, lane, n, aggregates int, number *int) []sinks.Message {
	payload := make([]byte, 500)
	_, _ = rand.Read(payload) // never fails
	batch := make([]sinks.Message, n)
	for i := range batch {
		*number++
		m := message(subject, fmt.Sprint("o-", lane, "-", i%aggregates), fmt.Sprintf("0190f5a0-0000-7000-%04d-%012d", lane, *number), 0)
		m.Event.Payload, m.Event.TenantID, m.Event.CorrelationID = payload, "tenant-1", "correlation-1"
		batch[i] = m
	}
	return batch
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
