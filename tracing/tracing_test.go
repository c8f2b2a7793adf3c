package tracing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// newRecorder returns a tracer with this sampler, and what records its spans.
func newRecorder(sampler sdktrace.Sampler) (trace.Tracer, *tracetest.SpanRecorder) {
	spans := tracetest.NewSpanRecorder()
	return NewTracer(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithSampler(sampler))), spans
}

// parent returns a traceparent whose trace and span have these numbers.
func parent(traceID, spanID int, flags string) string {
	return fmt.Sprintf("00-%032x-%016x-%s", traceID, spanID, flags)
}

// message returns a message whose metadata have this traceparent, or none.
func message(traceparent string) sinks.Message {
	e := &outbox.Event{
		ID: "secret-id", AggregateType: "secret-type", AggregateID: "secret-aggregate", EventType: "secret-event", Payload: []byte(`{"secret":1}`),
		TenantID: "secret-tenant", Metadata: []byte(`{"user":"secret-user"}`),
	}
	if traceparent != "" {
		e.Metadata = fmt.Appendf(nil, `{"user":"secret-user","traceparent":%q,"tracestate":"v=secret-state"}`, traceparent)
	}
	return sinks.Message{Event: e, Topic: "secret-topic", Key: "secret-key"}
}

var orders = Destination{Sink: "events", System: "kafka", Topic: "orders"}

func attributesOf(s sdktrace.ReadOnlySpan) (all []string) {
	for _, a := range s.Attributes() {
		all = append(all, string(a.Key)+"="+a.Value.String())
	}
	slices.Sort(all)
	return all
}

func linksOf(s sdktrace.ReadOnlySpan) (all []string) {
	for _, l := range s.Links() {
		all = append(all, l.SpanContext.TraceID().String()[28:]+"/"+l.SpanContext.SpanID().String()[12:]+"/"+l.SpanContext.TraceFlags().String())
	}
	return all
}

func TestDeliverySpan(t *testing.T) {
	t.Parallel()
	tracer, spans := newRecorder(sdktrace.AlwaysSample())
	batch := []sinks.Message{
		message(parent(1, 1, "00")), message(""), message(parent(2, 2, "01")), message(parent(2, 2, "01")), message(parent(2, 3, "01")),
		message("garbage"), message("00-" + strings.Repeat("0", 32) + "-0000000000000001-01"),
	}
	outer, end := tracer.Start(t.Context(), "outer") // what runs around a connector is no parent
	ctx, d := ForSink(tracer, orders).Start(outer, 3, batch)
	end.End()
	if got := trace.SpanContextFromContext(ctx); !got.IsSampled() || got.TraceID() == end.SpanContext().TraceID() {
		t.Errorf("Deliver gets the span context %v", got)
	}
	for i, want := range []string{"", "", fmt.Sprintf("%032x", 2), fmt.Sprintf("%032x", 2), fmt.Sprintf("%032x", 2), "", ""} {
		if got := d.TraceID(i); got != want {
			t.Errorf("message %d belongs to trace %q, want %q", i, got, want)
		}
	}
	d.End(nil)
	s := spans.Ended()[1]
	if s.Name() != "deliver orders" || s.SpanKind() != trace.SpanKindClient || s.Status().Code != codes.Unset || s.Parent().IsValid() {
		t.Errorf("got %s, %v, %v, parent %v", s.Name(), s.SpanKind(), s.Status(), s.Parent())
	}
	want := []string{
		"messaging.batch.message_count=7", "messaging.destination.name=orders", "messaging.operation.name=deliver",
		"messaging.operation.type=send", "messaging.system=kafka", "outbox.accepted=7", "outbox.lane=3", "outbox.sink=events",
	}
	if got := attributesOf(s); !slices.Equal(got, want) {
		t.Errorf("attributes\n%q, want\n%q", got, want)
	}
	// The sampled ones first, each once.
	if got, want := linksOf(s), []string{"0002/0002/01", "0002/0003/01", "0001/0001/00"}; !slices.Equal(got, want) {
		t.Errorf("links %q, want %q", got, want)
	}
}

func TestDestinations(t *testing.T) {
	t.Parallel()
	tracer, spans := newRecorder(sdktrace.AlwaysSample())
	for _, d := range []Destination{
		{Sink: "events", System: "kafka", Topic: "outbox.{aggregate_type}", IsTemplate: true},
		{Sink: "partner", System: "webhook"},
	} {
		_, span := ForSink(tracer, d).Start(t.Context(), 0, []sinks.Message{message("")})
		span.End(nil)
	}
	var got []string
	for _, s := range spans.Ended() {
		text := s.Name() + ":"
		for _, a := range attributesOf(s) {
			if strings.HasPrefix(a, "messaging.destination") {
				text += " " + a
			}
		}
		got = append(got, text)
	}
	want := []string{"deliver outbox.{aggregate_type}: messaging.destination.template=outbox.{aggregate_type}", "deliver partner:"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFailedDeliverySpan(t *testing.T) {
	t.Parallel()
	refused := errors.New("secret refusal that quotes a payload")
	for _, tt := range []struct {
		errs     []error
		class    string
		accepted string
	}{
		{nil, "", "3"},
		{[]error{nil, nil, nil}, "", "3"},
		{[]error{nil, refused, sinks.ErrNotAttempted}, "refused", "1"},
		{[]error{sinks.ErrNotAttempted, nil, fmt.Errorf("%w: %w", sinks.ErrPermanent, refused)}, "permanent", "1"},
		{[]error{nil, nil, sinks.Throttled(refused)}, "throttled", "2"},
		{[]error{sinks.ErrTopicUnavailable, nil, nil}, "topic_unavailable", "2"},
		{[]error{sinks.ErrUnavailable, sinks.ErrUnavailable, sinks.ErrUnavailable}, "unavailable", "0"},
		{[]error{sinks.ErrNotAttempted, sinks.ErrNotAttempted, nil}, "not_attempted", "1"},
	} {
		tracer, spans := newRecorder(sdktrace.AlwaysSample())
		_, d := ForSink(tracer, orders).Start(t.Context(), 0, []sinks.Message{message(""), message(""), message("")})
		d.End(tt.errs)
		s := spans.Ended()[0]
		code := codes.Unset
		if tt.class != "" {
			code = codes.Error
		}
		if s.Status() != (sdktrace.Status{Code: code, Description: tt.class}) {
			t.Errorf("%v: status %v", tt.errs, s.Status())
		}
		if got := attributesOf(s); !slices.Contains(got, "outbox.accepted="+tt.accepted) || slices.Contains(got, "error.type="+tt.class) != (tt.class != "") {
			t.Errorf("%v: attributes %q", tt.errs, got)
		}
		if text := fmt.Sprint(s.Name(), attributesOf(s), s.Status(), s.Events(), s.Links()); strings.Contains(text, "secret") {
			t.Errorf("the span tells of an event: %s", text)
		}
	}
}

// The links of a span are bounded, and those to spans that were stored come first.
func TestLinksAreBounded(t *testing.T) {
	t.Parallel()
	tracer, spans := newRecorder(sdktrace.AlwaysSample())
	var batch []sinks.Message
	for i := range 1000 {
		flags := "00"
		if i >= 990 {
			flags = "01"
		}
		batch = append(batch, message(parent(i+1, i+1, flags)))
	}
	_, d := ForSink(tracer, orders).Start(t.Context(), 0, batch)
	d.End(nil)
	links := spans.Ended()[0].Links()
	if len(links) != maxLinks {
		t.Fatalf("%d links", len(links))
	}
	for i, l := range links {
		if l.SpanContext.IsSampled() != (i < 10) || l.SpanContext.TraceState().Len() > 0 {
			t.Errorf("link %d: %v", i, l.SpanContext)
		}
	}
}

func TestRecorderSpan(t *testing.T) {
	t.Parallel()
	tracer, spans := newRecorder(sdktrace.AlwaysSample())
	r := ForRecorder(tracer, "public.event_outbox")
	_, span := r.Start(t.Context(), 12)
	span.End(Failure{})
	_, span = r.Start(t.Context(), 1)
	span.End(Failure{Class: "40001", SQLState: "40001"})
	want := []string{
		"db.system.name=postgresql", "messaging.batch.message_count=12", "messaging.destination.name=public.event_outbox",
		"messaging.operation.name=record", "messaging.operation.type=settle", "messaging.system=outbox",
	}
	first, second := spans.Ended()[0], spans.Ended()[1]
	if got := attributesOf(first); first.Name() != "record" || !slices.Equal(got, want) || first.Status().Code != codes.Unset {
		t.Errorf("%s, %v\n%q, want\n%q", first.Name(), first.Status(), got, want)
	}
	if got := attributesOf(second); second.Status() != (sdktrace.Status{Code: codes.Error, Description: "40001"}) ||
		!slices.Contains(got, "db.response.status_code=40001") || !slices.Contains(got, "error.type=40001") {
		t.Errorf("%v %q", second.Status(), got)
	}
}

// Without a provider nothing is allocated, and a span that is not sampled reads no metadata.
func TestOffIsFree(t *testing.T) {
	batch := []sinks.Message{message(parent(1, 1, "01"))}
	ctx := t.Context()
	once := func(s *Sink) func() {
		return func() {
			_, d := s.Start(ctx, 0, batch)
			if d.TraceID(0) != "" {
				t.Error("an exemplar of what is not traced")
			}
			d.End(nil)
		}
	}
	if s := ForSink(NewTracer(nil), orders); s != nil {
		t.Error("a nil provider makes spans")
	}
	if n := testing.AllocsPerRun(100, once(nil)); n != 0 {
		t.Errorf("%v allocations without tracing", n)
	}
	if n := testing.AllocsPerRun(100, once(ForSink(NewTracer(noop.NewTracerProvider()), orders))); n > 5 {
		t.Errorf("%v allocations with a provider that makes no spans", n)
	}
	tracer, _ := newRecorder(sdktrace.NeverSample())
	if n := testing.AllocsPerRun(100, once(ForSink(tracer, orders))); n > 8 {
		t.Errorf("%v allocations for a span that is not sampled", n)
	}
}

// One Deliver of 100 events of ten services.
func BenchmarkDelivery(b *testing.B) {
	var batch []sinks.Message
	for i := range 100 {
		batch = append(batch, message(parent(i%10+1, i+1, "01")))
	}
	for _, tt := range []struct {
		name    string
		sampler sdktrace.Sampler
	}{{"off", nil}, {"1%", sdktrace.TraceIDRatioBased(.01)}, {"100%", sdktrace.AlwaysSample()}} {
		b.Run(tt.name, func(b *testing.B) {
			var s *Sink
			if tt.sampler != nil {
				s = ForSink(NewTracer(sdktrace.NewTracerProvider(sdktrace.WithSampler(tt.sampler))), orders)
			}
			b.ReportAllocs()
			for b.Loop() {
				_, d := s.Start(context.Background(), 0, batch)
				d.End(nil)
			}
		})
	}
}
