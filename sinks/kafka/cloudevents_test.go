package kafka

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestCloudEvents of all kinds of events are what the official SDK says they are.
func TestCloudEvents(t *testing.T) {
	t.Parallel()
	cloudEvents(t, startFake(t).ListenAddrs())
}

func cloudEvents(t *testing.T, brokers []string) {
	for _, formats := range [][]string{{"cloudevents"}, {"debezium", "cloudevents"}} {
		s, _ := newSink(t, Config{Brokers: brokers, Formats: formats, Source: "/outbox/shop/{aggregate_type}"})
		topic := createTopic(t, brokers, 1, nil)
		events := formatEvents(topic)
		if errs := s.Deliver(t.Context(), batchOf(events)); errs != nil {
			t.Fatal(errs)
		}
		records := consume(t, brokers, topic)
		if len(records) != len(events) {
			t.Fatalf("%d of %d events arrived", len(records), len(events))
		}
		for i, r := range records {
			e := events[i].message.Event
			got, err := binding.ToEvent(t.Context(), cloudEventRecord(t, r))
			if err != nil {
				t.Errorf("%s: %v", events[i].name, err)
				continue
			}
			if err := got.Validate(); err != nil {
				t.Errorf("%s: %v", events[i].name, err)
			}
			want := event.New()
			want.SetID(e.ID)
			want.SetSource("/outbox/shop/Order")
			want.SetType(e.EventType)
			if e.AggregateID != "" {
				want.SetSubject(e.AggregateID)
			}
			if !e.CreatedAt.IsZero() {
				want.SetTime(e.CreatedAt)
			}
			want.SetDataContentType("application/json")
			if e.ContentType != "" {
				want.SetDataContentType(e.ContentType)
			}
			want.DataEncoded = e.Payload
			for name, value := range map[string]string{
				"partitionkey": e.AggregateID, "aggregatetype": "Order", "dataversion": columnEventVersion.of(e), "tenantid": e.TenantID,
				"correlationid": e.CorrelationID, "causationid": e.CausationID, "sequence": fmt.Sprintf("%016X-%08d", 0x16B374D848+i+1, i+1),
			} {
				if value != "" {
					want.SetExtension(name, value)
				}
			}
			switch events[i].name {
			case "all columns":
				want.SetDataContentType("application/json; charset=utf-8")
				want.SetExtension("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
				want.SetExtension("tracestate", "a=1,b=2")
				if headerOf(r, "traceparent") != "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" || headerOf(r, "tracestate") != "a=1,b=2" {
					t.Error("the trace context has no headers of its own")
				}
			case "no JSON":
				want.SetDataContentType("application/avro")
			}
			if diff := cmp.Diff(want, *got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s: %s", events[i].name, diff)
			}
			if (r.Value == nil) != (e.Payload == nil) {
				t.Errorf("%s: no data is no value, and only that", events[i].name)
			}
		}
	}
}

// kafkaVersions is how the binding names attributes: case matters in Kafka's headers.
var kafkaVersions = spec.WithPrefixMatchExact(func(name string) string {
	if name == "datacontenttype" {
		return headerContentType
	}
	return cePrefix + name
}, cePrefix)

// cloudEvent is a record in binary mode as the SDK's own binding for Kafka reads it (protocol/kafka_sarama, a module of its
// own); what the specification says of headers is checked before.
type cloudEvent struct {
	headers map[string]string
	value   []byte
	version spec.Version
}

func cloudEventRecord(t *testing.T, r *kgo.Record) *cloudEvent {
	t.Helper()
	m := &cloudEvent{headers: make(map[string]string), value: r.Value}
	for _, h := range r.Headers {
		if _, twice := m.headers[h.Key]; twice || !utf8.ValidString(h.Key) || !utf8.Valid(h.Value) {
			t.Errorf("header %s is there twice, or is no UTF-8", h.Key)
		}
		name, isAttribute := strings.CutPrefix(h.Key, cePrefix)
		if isAttribute && (name == "" || len(name) > 20 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "" || len(h.Value) == 0) {
			t.Errorf("header %s is no attribute, or is empty", h.Key)
		}
		m.headers[h.Key] = string(h.Value)
	}
	if format.Lookup(m.headers[headerContentType]) != nil || m.headers["ce_datacontenttype"] != "" {
		t.Error("it is not in binary mode")
	}
	m.version = kafkaVersions.Version(m.headers[kafkaVersions.PrefixedSpecVersionName()])
	if m.version == nil {
		t.Fatal("no ce_specversion")
	}
	if at := m.headers["ce_time"]; at != "" {
		if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
			t.Error(err)
		}
	}
	return m
}

func (m *cloudEvent) ReadEncoding() binding.Encoding { return binding.EncodingBinary }

func (m *cloudEvent) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (m *cloudEvent) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	for name, value := range m.headers {
		var err error
		if attribute := m.version.Attribute(name); attribute != nil {
			err = w.SetAttribute(attribute, value)
		} else if extension, ok := strings.CutPrefix(name, cePrefix); ok {
			err = w.SetExtension(extension, value)
		}
		if err != nil {
			return err
		}
	}
	if m.value == nil {
		return nil
	}
	return w.SetData(bytes.NewReader(m.value))
}

func (m *cloudEvent) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	attribute := m.version.AttributeFromKind(kind)
	if attribute == nil {
		return nil, nil
	}
	return attribute, m.headers[attribute.PrefixedName()]
}

func (m *cloudEvent) GetExtension(name string) any { return m.headers[cePrefix+name] }
