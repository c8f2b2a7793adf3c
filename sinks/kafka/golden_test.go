package kafka

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const goldenTopic = "outbox.event.Order"

// formatEvent is one whose record differs with the options of formats.
type formatEvent struct {
	name    string
	message sinks.Message
}

// formatEvents make of every column all that may matter.
func formatEvents(topic string) (all []formatEvent) {
	add := func(name string, change func(m *sinks.Message, e *outbox.Event)) {
		n := len(all) + 1
		m := sinks.Message{
			Event: &outbox.Event{
				ID: fmt.Sprintf("0190f5a0-0000-7000-8000-%012d", n), AggregateType: "Order", AggregateID: "order-1", EventType: "OrderPlaced",
				EventVersion: 1, Payload: []byte(`{"total":1}`), CreatedAt: time.Date(2026, 11, 24, 1, 2, 3, 40_500_000, time.UTC),
			},
			Topic: topic, Key: "order-1", LSN: pglogrepl.LSN(0x16B374D848 + n), Index: int64(n),
			CommitTime: time.Date(2026, 11, 24, 1, 2, 4, 999_999_000, time.UTC), Attempt: 1,
		}
		change(&m, m.Event)
		all = append(all, formatEvent{name, m})
	}
	add("all columns", func(_ *sinks.Message, e *outbox.Event) {
		e.EventVersion, e.TenantID, e.CorrelationID, e.CausationID = 12, "tenant-1", "correlation-1", "causation-1"
		e.Metadata = []byte(`{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,b=2",
			"content_type": "application/json; charset=utf-8", "user": "u \"1\" é", "retries": 1.50, "beta": true, "none": null,
			"empty": "", "nested": {"b": [1, 2], "a": "\u00e9"}, "not chosen": 1}`)
	})
	add("NULL columns", func(_ *sinks.Message, e *outbox.Event) { e.EventVersion, e.CreatedAt = 0, time.Time{} })
	add("Unicode", func(m *sinks.Message, e *outbox.Event) {
		e.ID, e.AggregateID, e.EventType = "id é", "Bestellung № 1 👩‍👩‍👧‍👦", `Größe "geändert" \ 100 %`
		e.TenantID, e.CorrelationID, e.CausationID = "<a&b>", "tab\tline\nbell\adelete\x7f", "\u2028/é/é"
		e.Payload = []byte(`{"Größe":"👩‍👩‍👧‍👦 \ud83d\ude00"}`)
		m.Key = e.AggregateID
	})
	add("JSON byte for byte", func(_ *sinks.Message, e *outbox.Event) {
		e.Payload = []byte("\n{\"b\" : 1e400,\t\"a\": 12345678901234567890.10, \"b\":\"\\u0041<&>\\/\"}\r\n")
	})
	add("no JSON", func(_ *sinks.Message, e *outbox.Event) {
		e.Payload, e.Metadata = []byte{0, 0xff, 0xc3, 0x28, '\n'}, []byte(`{"content_type":"application/avro"}`)
	})
	add("empty payload", func(_ *sinks.Message, e *outbox.Event) { e.Payload = []byte{} })
	add("blank payload", func(_ *sinks.Message, e *outbox.Event) { e.Payload = []byte(" \t\r\n") })
	add("NULL payload", func(_ *sinks.Message, e *outbox.Event) { e.Payload = nil })
	add("no key, metadata that is no object", func(m *sinks.Message, e *outbox.Event) {
		m.Key, e.Metadata = "", []byte(`"traceparent" "user"`)
	})
	add("empty aggregate_id, no version", func(m *sinks.Message, e *outbox.Event) { m.Key, e.AggregateID, e.EventVersion = "", "", 0 })
	add("bytea", func(_ *sinks.Message, e *outbox.Event) { e.ContentType = "application/octet-stream" })
	return all
}

func batchOf(events []formatEvent) (batch []sinks.Message) {
	for _, e := range events {
		batch = append(batch, e.message)
	}
	return batch
}

// formatOptions are the configurations, each with a golden file.
var formatOptions = map[string]Config{
	"default":                    {},
	"placement-id":               {Placement: "id:header"},
	"placement":                  {Placement: "type:header:type,aggregate_type:header, event_version:HEADER:v", Columns: map[string]string{"type": "event_type"}},
	"placement-all":              {Placement: "id:header:eventId,aggregate_type:header,aggregate_id:header,event_type:header,event_version:header,tenant_id:header,correlation_id:header,causation_id:header,created_at:header"},
	"header-encoding-json":       {HeaderEncoding: "json", Placement: "event_type:header:eventType,event_version:header,correlation_id:header,causation_id:header,created_at:header"},
	"headers-from-metadata":      {HeadersFromMetadata: []string{"user", "retries", "beta", "none", "empty", "nested", "missing", "traceparent", "tracestate"}},
	"headers-from-metadata-json": {HeaderEncoding: "json", HeadersFromMetadata: []string{"user", "retries", "beta", "nested"}},
	"tombstone":                  {TombstoneOnEmptyPayload: true},
	"lsn-header":                 {LSNHeader: true},
	"timestamp-created-at":       {Timestamp: "created_at"},
	"cloudevents":                {Formats: []string{"cloudevents"}, Source: "/outbox/shop/{aggregate_type}"},
	"debezium-cloudevents":       {Formats: []string{"debezium", "cloudevents"}, Source: "https://shop.example/outbox"},
	"everything": {
		Formats: []string{"cloudevents", "debezium"}, Source: "/outbox/shop/{aggregate_type}", Placement: "event_type:header:type",
		HeaderEncoding: "json", HeadersFromMetadata: []string{"user"}, TombstoneOnEmptyPayload: true, LSNHeader: true, Timestamp: "created_at",
	},
}

// TestGolden keeps for each option what stands in the topic: key, headers, value, timestamp.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, c := range formatOptions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.Brokers = startFake(t, kfake.SeedTopics(1, goldenTopic)).ListenAddrs()
			s, _ := newSink(t, c)
			events := formatEvents(goldenTopic)
			if errs := s.Deliver(t.Context(), batchOf(events)); errs != nil {
				t.Fatal(errs)
			}
			var got bytes.Buffer
			for i, r := range consume(t, c.Brokers, goldenTopic) {
				fmt.Fprintf(&got, "== %s\n", events[i].name)
				printRecord(&got, r)
			}
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s (-update rewrites it): %s", file, diff)
			}
		})
	}
}

func printRecord(w *bytes.Buffer, r *kgo.Record) {
	text := func(b []byte) string {
		if b == nil {
			return "null"
		}
		return fmt.Sprintf("%q", b)
	}
	fmt.Fprintf(w, "topic      %s\ntimestamp  %s\nkey        %s\n", r.Topic, r.Timestamp.UTC().Format(time.RFC3339Nano), text(r.Key))
	for _, h := range r.Headers {
		fmt.Fprintf(w, "header     %s: %s\n", h.Key, text(h.Value))
	}
	fmt.Fprintf(w, "value      %s\n\n", text(r.Value))
}
