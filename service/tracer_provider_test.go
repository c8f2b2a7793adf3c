package service_test

import (
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/pyairtable-compose/outbox-cdc/outboxtest"
	outbox "github.com/pyairtable-compose/outbox-cdc/service"
)

// A service that embeds the connector hands over its own provider, and finds there what the connector does, linked to its own spans.
func TestTracerProviderOfAService(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	db := outboxtest.NewDB(t)
	sink := outboxtest.NewSink()
	c := configOf(t, db, sink)
	c.TracerProvider = provider
	s := newService(t, db, c)
	start(t, s)
	ctx, span := provider.Tracer("shop").Start(t.Context(), "register")
	if err := s.Wrapper.ExecuteWithOutbox(traced(ctx), outbox.EventProducingOperation{Events: []outbox.DomainEvent{event("1", "user.registered")}}); err != nil {
		t.Fatal(err)
	}
	span.End()
	sink.AssertPublished(t, "1", "user.registered")
	stop(t, s)
	records, deliveries := 0, 0
	for _, ended := range spans.Ended() {
		switch name, _, _ := strings.Cut(ended.Name(), " "); name {
		case "record":
			records++
		case "deliver":
			if links := ended.Links(); len(links) != 1 || !links[0].SpanContext.Equal(span.SpanContext().WithRemote(true)) {
				t.Errorf("links %v, want one to %v", links, span.SpanContext())
			}
			deliveries++
		}
	}
	if records == 0 || deliveries != 1 {
		t.Errorf("%d spans of the recorder, %d of deliveries", records, deliveries)
	}
}
