package kafka

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const fakeProcess = "OUTBOX_KAFKA_FAKE_PROCESS"

// TestMain is also the main of a faked broker, for benchmarks: its CPU time is not that of the sink.
func TestMain(m *testing.M) {
	if os.Getenv(fakeProcess) == "" {
		os.Exit(m.Run())
	}
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "bench"), kfake.BlackholeProduce())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(c.ListenAddrs(), " "))
	_, _ = io.Copy(io.Discard, os.Stdin) // until our parent is gone
}

func startFakeProcess(b *testing.B) (brokers []string) {
	b.Helper()
	fake := exec.Command(os.Args[0])
	fake.Env = append(os.Environ(), fakeProcess+"=1")
	fake.Stderr = os.Stderr
	in, err := fake.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := fake.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := fake.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = fake.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.Fields(line)
}

// BenchmarkRecord measures an event's way into a batch alone.
func BenchmarkRecord(b *testing.B) {
	batch := benchmarkBatch(500)
	for name, c := range map[string]Config{
		"debezium": {}, "both": {Formats: []string{formatDebezium, formatCloudEvents}, Source: "/outbox/shop/{aggregate_type}"},
	} {
		b.Run(name, func(b *testing.B) {
			l, err := c.layout()
			if err != nil {
				b.Fatal(err)
			}
			records, room, out := make([]record, len(batch)), []header(nil), []byte(nil)
			b.ReportAllocs()
			for b.Loop() {
				room, out = encodeAll(&l, batch, records, room, out)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/event")
		})
	}
}

func encodeAll(l *layout, batch []sinks.Message, records []record, room []header, out []byte) ([]header, []byte) {
	room, out = room[:0], out[:0]
	for i := range records {
		room = records[i].begin(&batch[i], l, room)
	}
	for i := range records {
		records[i].measure(records[0].timestamp, int32(i))
		out = records[i].append(out, records[0].timestamp)
	}
	return room, out
}

// TestRecordsCostNoAllocation without options. It runs alone, as it counts them.
func TestRecordsCostNoAllocation(t *testing.T) {
	l, err := (&Config{}).layout()
	if err != nil {
		t.Fatal(err)
	}
	batch := benchmarkBatch(100)
	records := make([]record, len(batch))
	room, out := encodeAll(&l, batch, records, nil, nil)
	if n := testing.AllocsPerRun(20, func() { room, out = encodeAll(&l, batch, records, room, out) }); n != 0 {
		t.Errorf("%g allocations for %d records", n, len(batch))
	}
}

// BenchmarkDeliver measures what an event of 490 incompressible bytes with all headers costs in CPU time of this
// process, and what it costs with franz-go's own producer.
func BenchmarkDeliver(b *testing.B) {
	brokers := startFakeProcess(b)
	for _, n := range []int{250, 500} {
		batch := benchmarkBatch(n)
		b.Run(fmt.Sprint("batch ", n), func(b *testing.B) {
			s, err := New(Config{Brokers: brokers})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			measure(b, n, func() {
				if errs := s.Deliver(b.Context(), batch); errs != nil {
					b.Fatal(errs)
				}
			})
		})
		b.Run(fmt.Sprint("batch ", n, ", cloudevents"), func(b *testing.B) {
			s, err := New(Config{Brokers: brokers, Formats: []string{formatDebezium, formatCloudEvents}, Source: "/outbox/shop/{aggregate_type}"})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			measure(b, n, func() {
				if errs := s.Deliver(b.Context(), batch); errs != nil {
					b.Fatal(errs)
				}
			})
		})
		b.Run(fmt.Sprint("batch ", n, ", kgo's producer"), func(b *testing.B) {
			client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ManualFlushing(), kgo.ProducerBatchCompression(kgo.NoCompression()))
			if err != nil {
				b.Fatal(err)
			}
			defer client.Close()
			measure(b, n, func() { produce(b, client, batch) })
		})
	}
}

func measure(b *testing.B, n int, deliver func()) {
	deliver() // connects
	before := cpuTime(b)
	b.ReportAllocs()
	for b.Loop() {
		deliver()
	}
	events := float64(b.N * n)
	b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/events, "cpu-ns/event")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/events, "ns/event")
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// produce is the same work, as thriftily as records allow.
func produce(b *testing.B, client *kgo.Client, batch []sinks.Message) {
	records := make([]kgo.Record, len(batch))
	headers := make([]kgo.RecordHeader, 0, 6*len(batch))
	promise := func(_ *kgo.Record, err error) {
		if err != nil {
			b.Error(err)
		}
	}
	for i := range batch {
		e := batch[i].Event
		from := len(headers)
		headers = append(headers, kgo.RecordHeader{Key: "id", Value: []byte(e.ID)},
			kgo.RecordHeader{Key: "eventType", Value: []byte(e.EventType)}, kgo.RecordHeader{Key: "eventVersion", Value: []byte("1")},
			kgo.RecordHeader{Key: "tenantId", Value: []byte(e.TenantID)},
			kgo.RecordHeader{Key: "correlationId", Value: []byte(e.CorrelationID)},
			kgo.RecordHeader{Key: "causationId", Value: []byte(e.CausationID)})
		records[i] = kgo.Record{
			Topic: batch[i].Topic, Key: []byte(batch[i].Key), Value: e.Payload, Headers: headers[from:len(headers):len(headers)],
			Timestamp: batch[i].CommitTime,
		}
		client.Produce(context.Background(), &records[i], promise)
	}
	if err := client.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func benchmarkBatch(n int) []sinks.Message {
	batch := make([]sinks.Message, n)
	for i := range batch {
		payload := make([]byte, 490)
		_, _ = rand.Read(payload) // never fails
		key := fmt.Sprint("order-", i%97)
		batch[i] = sinks.Message{
			Event: &outbox.Event{
				ID: fmt.Sprintf("0190f5a0-0000-7000-8000-%012d", i), AggregateType: "Order", AggregateID: key,
				EventType: "OrderPlaced", EventVersion: 1, Payload: payload, Metadata: []byte(`{"user": "u-1", "source": "checkout"}`),
				TenantID: "tenant-1", CorrelationID: "correlation-1", CausationID: "causation-1", CreatedAt: time.Now(),
			},
			Topic: "bench", Key: key, CommitTime: time.Now(),
		}
	}
	return batch
}
