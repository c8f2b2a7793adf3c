package kafka

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// murmur2Vectors are those of Kafka's own UtilsTest.
var murmur2Vectors = map[string]int32{
	"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
	"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107, "": 275646681,
}

// TestPartitionsAreJavas, also where the aggregate's id takes the part of a missing key.
func TestPartitionsAreJavas(t *testing.T) {
	t.Parallel()
	s, _ := newSink(t, Config{Brokers: []string{"127.0.0.1:1"}})
	for key, hash := range murmur2Vectors {
		for _, n := range []int{1, 3, 12, 1000, 65_537} {
			p := &producer{sink: s, topics: map[string]*topic{"t": {partitioner: s.partitioner.ForTopic("t")}}}
			for i := range n {
				p.topics["t"].partitions = append(p.topics["t"].partitions, &partition{topic: p.topics["t"], number: int32(i)})
			}
			want := (hash & math.MaxInt32) % int32(n)
			for _, m := range []sinks.Message{
				{Topic: "t", Key: key, Event: &outbox.Event{AggregateID: "other"}},
				{Topic: "t", Event: &outbox.Event{AggregateID: key}},
			} {
				if key == "" && m.Event.AggregateID != "" {
					continue
				}
				if got, err := p.place(&m); err != nil || got.number != want {
					t.Errorf("key %q of %d partitions: want %d, got %d, %v", key, n, want, got.number, err)
				}
			}
		}
	}
}

// TestRecords are read as they stand in the topic.
func TestRecords(t *testing.T) {
	t.Parallel()
	brokers := startFake(t).ListenAddrs()
	commit := time.Date(2026, 11, 24, 4, 5, 6, 789_999_000, time.UTC)
	created := time.Date(2026, 11, 24, 1, 2, 3, 4_000_000, time.UTC)
	event := func(change func(m *sinks.Message)) sinks.Message {
		m := sinks.Message{
			Event: &outbox.Event{ID: "id-1", AggregateType: "Order", AggregateID: "o-1", EventType: "OrderPlaced", EventVersion: 1, Payload: []byte("p"), CreatedAt: created},
			Key:   "o-1", CommitTime: commit,
		}
		change(&m)
		return m
	}
	headers := func(more ...string) (h []kgo.RecordHeader) {
		for i := 0; i < len(more); i += 2 {
			h = append(h, kgo.RecordHeader{Key: more[i], Value: []byte(more[i+1])})
		}
		return h
	}
	plain := headers("id", "id-1", "eventType", "OrderPlaced", "eventVersion", "1")
	metadata := func(json string) func(*sinks.Message) {
		return func(m *sinks.Message) { m.Event.Metadata = []byte(json) }
	}
	for name, c := range map[string]struct {
		timestamp string
		message   sinks.Message
		want      kgo.Record
	}{
		"least": {
			message: event(func(*sinks.Message) {}),
			want:    kgo.Record{Key: []byte("o-1"), Value: []byte("p"), Headers: plain, Timestamp: commit},
		},
		"all columns": {
			message: event(func(m *sinks.Message) {
				m.Event.EventVersion, m.Event.TenantID, m.Event.CorrelationID, m.Event.CausationID = 12, "t", "c", "d"
				metadata(`{"content_type": "application/avro", "traceparent": "00-ab-cd-01", "tracestate": "é=1", "user": "u"}`)(m)
			}),
			want: kgo.Record{Key: []byte("o-1"), Value: []byte("p"), Timestamp: commit, Headers: headers("id", "id-1",
				"eventType", "OrderPlaced", "eventVersion", "12", "tenantId", "t", "correlationId", "c", "causationId", "d",
				"content-type", "application/avro", "traceparent", "00-ab-cd-01", "tracestate", "é=1")},
		},
		"time of the event": {
			timestamp: "created_at", message: event(func(*sinks.Message) {}),
			want: kgo.Record{Key: []byte("o-1"), Value: []byte("p"), Headers: plain, Timestamp: created},
		},
		"no key, no payload: a tombstone": {
			message: event(func(m *sinks.Message) { m.Key, m.Event.Payload = "", nil }),
			want:    kgo.Record{Headers: plain, Timestamp: commit},
		},
		"empty payload, no event type": {
			message: event(func(m *sinks.Message) { m.Event.Payload, m.Event.EventType = []byte{}, "" }),
			want:    kgo.Record{Key: []byte("o-1"), Value: []byte{}, Headers: headers("id", "id-1", "eventVersion", "1"), Timestamp: commit},
		},
		"no version": {
			message: event(func(m *sinks.Message) { m.Event.EventVersion = 0 }),
			want:    kgo.Record{Key: []byte("o-1"), Value: []byte("p"), Headers: headers("id", "id-1", "eventType", "OrderPlaced"), Timestamp: commit},
		},
		"empty aggregate_id": {
			message: event(func(m *sinks.Message) { m.Key, m.Event.AggregateID = "", "" }),
			want:    kgo.Record{Key: []byte{}, Value: []byte("p"), Headers: plain, Timestamp: commit},
		},
		"NULL in the column of the key": {
			message: event(func(m *sinks.Message) { m.Key = "" }),
			want:    kgo.Record{Value: []byte("p"), Headers: plain, Timestamp: commit},
		},
		"metadata of other types": {
			message: event(metadata(`{"content_type": 7, "traceparent": null, "tracestate": {}}`)),
			want:    kgo.Record{Key: []byte("o-1"), Value: []byte("p"), Headers: plain, Timestamp: commit},
		},
		"metadata that is no object": {
			message: event(metadata(`"content_type" and "traceparent"`)),
			want:    kgo.Record{Key: []byte("o-1"), Value: []byte("p"), Headers: plain, Timestamp: commit},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := newSink(t, Config{Brokers: brokers, Timestamp: c.timestamp})
			topic := createTopic(t, brokers, 1, nil)
			c.message.Topic = topic
			if errs := s.Deliver(t.Context(), []sinks.Message{c.message}); errs != nil {
				t.Fatal(errs)
			}
			c.want.Topic, c.want.Timestamp = topic, c.want.Timestamp.Truncate(time.Millisecond)
			got := consume(t, brokers, topic)
			if diff := cmp.Diff([]*kgo.Record{&c.want}, got, cmpopts.IgnoreFields(kgo.Record{}, "Attrs", "ProducerID", "ProducerEpoch",
				"LeaderEpoch", "Offset", "Context"), cmpopts.IgnoreUnexported(kgo.Record{}), cmp.Transformer("UTC", time.Time.UTC)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestTimestampsDiffer within one batch, in both directions.
func TestTimestampsDiffer(t *testing.T) {
	t.Parallel()
	brokers := startFake(t).ListenAddrs()
	s, _ := newSink(t, Config{Brokers: brokers})
	topic := createTopic(t, brokers, 1, nil)
	now := time.Now().Truncate(time.Millisecond)
	var batch []sinks.Message
	var want []time.Time
	for i, offset := range []time.Duration{0, time.Hour, -24 * 365 * time.Hour, time.Millisecond, -time.Millisecond} {
		m := message(topic, "a", fmt.Sprint(i), 1)
		m.CommitTime = now.Add(offset)
		batch, want = append(batch, m), append(want, m.CommitTime)
	}
	if errs := s.Deliver(t.Context(), batch); errs != nil {
		t.Fatal(errs)
	}
	var got []time.Time
	for _, r := range consume(t, brokers, topic) {
		got = append(got, r.Timestamp)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCompression(t *testing.T) {
	t.Parallel()
	brokers := startFake(t).ListenAddrs()
	for i, name := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := newSink(t, Config{Brokers: brokers, Compression: name})
			topic := createTopic(t, brokers, 1, nil)
			batch := messages(topic, 100, 9)
			if errs := s.Deliver(t.Context(), batch); errs != nil {
				t.Fatal(errs)
			}
			records := consume(t, brokers, topic)
			for i, r := range records {
				if id := headerOf(r, "id"); id != batch[i].Event.ID || string(r.Value) != string(batch[i].Event.Payload) {
					t.Errorf("record %d is not event %s", i, batch[i].Event.ID)
				}
			}
			if codec := records[0].Attrs.CompressionType(); int(codec) != i {
				t.Errorf("want codec %d, got %d", i, codec)
			}
		})
	}
}

func TestTopicNames(t *testing.T) {
	t.Parallel()
	long := string(make([]byte, 0, 249))
	for range 249 {
		long += "x"
	}
	for name, want := range map[string]bool{
		"outbox.event.Order": true, "a": true, "A_b-9.": true, "..a": true, long: true,
		"": false, ".": false, "..": false, long + "x": false, "a b": false, "a/b": false, "é": false, "a\x00": false, "a\n": false,
	} {
		if got := isTopicName(name); got != want {
			t.Errorf("%q: want %t, got %t", name, want, got)
		}
	}
}

// TestContentType: a record in the format debezium has the header only if the metadata or the configuration say it.
func TestContentType(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ format, metadata, configured, column, want string }{
		{"debezium", "{}", "", "application/octet-stream", ""},
		{"debezium", "{}", "application/avro", "", "application/avro"},
		{"debezium", `{"content_type": "a/b"}`, "application/avro", "", "a/b"},
		{"cloudevents", "{}", "", "", "application/json"},
		{"cloudevents", "{}", "", "application/octet-stream", "application/octet-stream"},
		{"cloudevents", "{}", "application/avro", "application/octet-stream", "application/avro"},
	} {
		config := Config{Formats: []string{c.format}, Source: "/outbox", ContentType: c.configured}
		l, err := config.layout()
		if err != nil {
			t.Fatal(err)
		}
		m := message("t", "o-1", "1", 10)
		m.Event.Metadata, m.Event.ContentType = []byte(c.metadata), c.column
		got := ""
		for _, h := range l.appendHeaders(nil, &m) {
			if h.name == headerContentType {
				got += h.value
			}
		}
		if got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
