package service_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pyairtable-compose/outbox-cdc/outboxtest"
	outbox "github.com/pyairtable-compose/outbox-cdc/service"
)

// traced lets the events that are written with ctx belong to its span.
func traced(ctx context.Context) context.Context {
	span := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, span)
	return outbox.WithTraceParent(ctx, span["traceparent"], span["tracestate"])
}

// The function in docs/embedding.md reads the span of OpenTelemetry.
func TestTraceOfASpan(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/embedding.md")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("trace_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(page), "\n// traced lets")
	shown, _, _ = strings.Cut(shown, "```")
	if shown == "" || !strings.Contains(string(own), "// traced lets"+shown) {
		t.Errorf("docs/embedding.md shows another function than is tested:\n%s", shown)
	}

	state, err := trace.ParseTraceState("vendor=1")
	if err != nil {
		t.Fatal(err)
	}
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{15: 1}, SpanID: trace.SpanID{7: 2}, TraceFlags: trace.FlagsSampled, TraceState: state,
	}))
	db := outboxtest.NewDB(t)
	wrapper := outbox.NewWrapper(db)
	for _, ctx := range []context.Context{t.Context(), ctx} { // without a span, and with one
		if err := wrapper.ExecuteWithOutbox(traced(ctx), outbox.EventProducingOperation{Events: []outbox.DomainEvent{event("1", "user.registered")}}); err != nil {
			t.Fatal(err)
		}
	}
	events := outboxtest.Events(t, db, "1")
	const want = `{"tracestate": "vendor=1", "traceparent": "00-00000000000000000000000000000001-0000000000000002-01"}`
	if string(events[0].Metadata) != "{}" || string(events[1].Metadata) != want {
		t.Errorf("got %s and %s", events[0].Metadata, events[1].Metadata)
	}
}
