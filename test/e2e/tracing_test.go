package e2e

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// spanReceiver receives spans by OTLP over HTTP.
type spanReceiver struct {
	server *httptest.Server

	mu    sync.Mutex
	spans []*tracepb.Span
	from  map[string]bool // the values of service.name
	keys  map[string]bool // the values of the header api-key
}

func newSpanReceiver(t *testing.T) *spanReceiver {
	t.Helper()
	r := &spanReceiver{from: map[string]bool{}, keys: map[string]bool{}}
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		var request collector.ExportTraceServiceRequest
		body, err := gzip.NewReader(q.Body)
		if err == nil {
			var message []byte
			if message, err = io.ReadAll(body); err == nil {
				err = proto.Unmarshal(message, &request)
			}
		}
		if err != nil || q.URL.Path != "/v1/traces" || q.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %v: %v", q.URL, q.Header, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.keys[q.Header.Get("Api-Key")] = true
		for _, rs := range request.GetResourceSpans() {
			for _, a := range rs.GetResource().GetAttributes() {
				if a.GetKey() == "service.name" {
					r.from[a.GetValue().GetStringValue()] = true
				}
			}
			for _, ss := range rs.GetScopeSpans() {
				r.spans = append(r.spans, ss.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf") // and an empty ExportTraceServiceResponse
	}))
	t.Cleanup(r.server.Close)
	return r
}

// named returns the spans with this name.
func (r *spanReceiver) named(name string) (all []*tracepb.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.spans {
		if s.GetName() == name {
			all = append(all, s)
		}
	}
	return all
}

// A trace leads from the transaction of a service through the connector to a consumer: the consumer's span is a child of the service's, the
// connector's span has a link to it, and the histogram has it as exemplar.
func TestTracing(t *testing.T) {
	t.Parallel()
	receiver := newSpanReceiver(t)
	w := newWorld(t, worldOptions{sinks: []string{"redis_stream"}})
	c := w.connector()
	c.env = []string{
		"DATABASE_URL=" + w.dsn, "SERVICE_NAME=" + w.slot, "OUTBOX_SLOT=" + w.slot, "OUTBOX_PUBLICATION=" + w.publication, "OUTBOX_LISTEN=" + c.listen,
		"OUTBOX_PUBLISHER_TYPE=redis_stream", "OUTBOX_REDIS_URL=" + w.redis.URL(), "OUTBOX_REDIS_STREAM=" + w.topics.of("order"),
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + receiver.server.URL, "OTEL_EXPORTER_OTLP_HEADERS=api-key=secret-key", "OTEL_SERVICE_NAME=shop-cdc",
		"OTEL_TRACES_SAMPLER=parentbased_always_on",
	}
	c.start()
	c.ready("leader")

	// The service.
	ours := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(ours)).Tracer("test")
	ctx, placed := tracer.Start(t.Context(), "place order")
	insertTraced(ctx, t, w.dsn)
	placed.End()

	// The consumer.
	var consumed sdktrace.ReadOnlySpan
	eventually(t, 10*time.Second, "the event in Redis", func() error {
		parent, err := parentInStream(t, w, w.topics.of("order"))
		if err != nil {
			return err
		}
		_, span := tracer.Start(parent, "take order")
		span.End()
		consumed = ours.Ended()[len(ours.Ended())-1]
		return nil
	})
	service := placed.SpanContext()
	if consumed.Parent().SpanID() != service.SpanID() || consumed.SpanContext().TraceID() != service.TraceID() || !consumed.Parent().IsRemote() {
		t.Errorf("the consumer's span has the parent %v, want %v", consumed.Parent(), service)
	}

	// The connector.
	var body string
	eventually(t, 10*time.Second, "an exemplar", func() error {
		body = c.openMetrics(t)
		if want := fmt.Sprintf(`# {trace_id=%q}`, service.TraceID().String()); !strings.Contains(body, want) {
			return errors.New("no " + want)
		}
		return nil
	})
	c.term()
	delivered := receiver.named("deliver " + w.topics.of("order"))
	if len(delivered) != 1 || len(receiver.named("record")) == 0 {
		t.Fatalf("spans %v", receiver.spans)
	}
	span := delivered[0]
	links := span.GetLinks()
	if len(links) != 1 || hex.EncodeToString(links[0].GetTraceId()) != service.TraceID().String() || hex.EncodeToString(links[0].GetSpanId()) != service.SpanID().String() {
		t.Errorf("links %v, want one to %v", links, service)
	}
	if span.GetKind() != tracepb.Span_SPAN_KIND_CLIENT || len(span.GetParentSpanId()) > 0 || hex.EncodeToString(span.GetTraceId()) == service.TraceID().String() {
		t.Errorf("span %v", span)
	}
	if !receiver.from["shop-cdc"] || len(receiver.from) != 1 || !receiver.keys["secret-key"] {
		t.Errorf("spans come from %v, with keys %v", receiver.from, receiver.keys)
	}
	log, err := os.ReadFile(c.last().stderr)
	if err != nil || strings.Contains(string(log), "secret-key") || !strings.Contains(string(log), "spans are sent") {
		t.Errorf("the log: %v\n%s", err, log)
	}
	for _, s := range receiver.spans {
		if text := s.String(); strings.Contains(text, "canary") {
			t.Errorf("a span tells of the event: %s", text)
		}
	}
}

// insertTraced writes an event in a transaction of the service whose span is in ctx.
func insertTraced(ctx context.Context, t *testing.T, dsn string) {
	t.Helper()
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	ctx = outbox.WithTraceParent(ctx, carrier["traceparent"], carrier["tracestate"])
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		return outbox.Insert(ctx, tx, outbox.Event{
			AggregateType: "order", AggregateID: "canary-aggregate", EventType: "order.placed", Payload: []byte(`{"canary":1}`), TenantID: "canary-tenant",
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// parentInStream returns a context with the span that the first entry of a stream names.
func parentInStream(t *testing.T, w *world, stream string) (context.Context, error) {
	t.Helper()
	options, err := redis.ParseURL(w.redis.URL())
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(options)
	defer client.Close()
	entries, err := client.XRange(t.Context(), stream, "-", "+").Result()
	if err != nil || len(entries) == 0 {
		return nil, fmt.Errorf("%d entries, %w", len(entries), err)
	}
	carrier := propagation.MapCarrier{}
	for name, value := range entries[0].Values {
		carrier[name] = fmt.Sprint(value)
	}
	ctx := propagation.TraceContext{}.Extract(t.Context(), carrier)
	if !trace.SpanContextFromContext(ctx).IsValid() {
		t.Errorf("no trace in %v", entries[0].Values)
	}
	return ctx, nil
}

// openMetrics returns /metrics in the format of OpenMetrics.
func (c *connector) openMetrics(t *testing.T) string {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.listen+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	answer, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// A collector that is away or hangs delays neither deliveries nor the end of the process.
func TestTracingWithoutCollector(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	c := w.connector()
	c.env = []string{
		"DATABASE_URL=" + w.dsn, "SERVICE_NAME=" + w.slot, "OUTBOX_SLOT=" + w.slot, "OUTBOX_PUBLICATION=" + w.publication, "OUTBOX_LISTEN=" + c.listen,
		"OUTBOX_PUBLISHER_TYPE=stdout", "OTEL_EXPORTER_OTLP_ENDPOINT=http://" + freeAddress(t),
	}
	c.start()
	c.ready("leader")
	for range 200 {
		w.insert(10)
	}
	w.allPassed(20 * time.Second)
	eventually(t, 10*time.Second, "the line about the collector", func() error {
		if n := strings.Count(tail(c.last().stderr, 1000), "spans cannot be sent"); n != 1 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
	began := time.Now()
	c.term()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
	if text := tail(c.last().stderr, 1000); strings.Count(text, "spans cannot be sent") != 1 || strings.Contains(text, "traces export") {
		t.Errorf("the log:\n%s", text)
	}
}
