// Package tracing makes the spans of a connector: one for each Deliver, with links to the spans in which services have written the events,
// and one for each transaction of the recorder. It uses the API of OpenTelemetry alone. Who exports the spans is decided by who gives the
// TracerProvider: the command uses package tracing/otlp, and a service that embeds the connector has a provider of its own.
//
// A span has no payload, no metadata, no key and no id of an event or aggregate, and no text of an error, because a destination may quote
// payloads in it.
package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// scope is the instrumentation scope of all spans.
const scope = "github.com/pyairtable-compose/outbox-cdc"

// Names of attributes that OpenTelemetry does not define.
const (
	sinkKey     = attribute.Key("outbox.sink")
	laneKey     = attribute.Key("outbox.lane")
	acceptedKey = attribute.Key("outbox.accepted")
)

// NewTracer returns the tracer of a provider. It is nil, which means no tracing, if the provider is nil.
func NewTracer(p trace.TracerProvider) trace.Tracer {
	if p == nil {
		return nil
	}
	return p.Tracer(scope, trace.WithInstrumentationVersion(buildinfo.Read().Version), trace.WithSchemaURL(semconv.SchemaURL))
}

// Destination is what the spans of a sink say of it. Only the configuration decides it, never an event.
type Destination struct {
	// Sink is the sink's name.
	Sink string
	// System is the messaging system, such as kafka.
	System string
	// Topic is the one topic of all its messages, or the template of them. It is empty if routes give it others, or if it may be a secret,
	// such as the URL of a webhook.
	Topic string
	// IsTemplate says that Topic is a template.
	IsTemplate bool
}

// Sink makes the spans of the deliveries to one sink. A nil *Sink makes none, and costs nothing. It may be used by several goroutines.
type Sink struct {
	tracer trace.Tracer
	span   string
	start  []trace.SpanStartOption
}

// ForSink makes the Sink of a destination. It is nil if tracer is nil.
func ForSink(tracer trace.Tracer, d Destination) *Sink {
	if tracer == nil {
		return nil
	}
	about := []attribute.KeyValue{
		semconv.MessagingSystemKey.String(d.System), semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("deliver"),
		sinkKey.String(d.Sink),
	}
	name := d.Topic
	switch {
	case d.Topic == "":
		name = d.Sink
	case d.IsTemplate:
		about = append(about, semconv.MessagingDestinationTemplate(d.Topic))
	default:
		about = append(about, semconv.MessagingDestinationName(d.Topic))
	}
	return &Sink{
		tracer: tracer, span: "deliver " + name,
		// The spans of the services that wrote the events are the creation contexts of these messages. Hence this is no PRODUCER, and
		// they become no parents: one Deliver has the events of many of them.
		start: []trace.SpanStartOption{trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(about...)},
	}
}

// Start begins the span of a Deliver call of this lane. The caller gives the context to Deliver, and calls End of the Delivery after it.
// Links are made only if the span is sampled, because they need the metadata of the events.
func (s *Sink) Start(ctx context.Context, lane int, batch []sinks.Message) (context.Context, Delivery) {
	if s == nil {
		return ctx, Delivery{}
	}
	ctx, span := s.tracer.Start(ctx, s.span, s.start...)
	if !span.IsRecording() {
		return ctx, Delivery{}
	}
	span.SetAttributes(semconv.MessagingBatchMessageCount(len(batch)), laneKey.Int(lane))
	origins := originsOf(batch)
	for _, link := range origins.links() {
		span.AddLink(link)
	}
	return ctx, Delivery{span: span, traces: origins.traces}
}

// Delivery is the span of one Deliver call. The zero Delivery is none.
type Delivery struct {
	span   trace.Span
	traces []trace.TraceID // by message: the event's own trace, if it was sampled
}

// End ends the span. errs are what Deliver has returned.
func (d *Delivery) End(errs []error) {
	if d.span == nil {
		return
	}
	accepted, class := len(d.traces), ""
	for _, err := range errs {
		if err == nil {
			continue
		}
		accepted--
		if c := classOf(err); class == "" || class == notAttempted {
			class = c // what was not sent says less than what was
		}
	}
	d.span.SetAttributes(acceptedKey.Int(accepted))
	failed(d.span, class)
	d.span.End()
}

// TraceID returns the id of the trace that message i of the batch belongs to, in hexadecimal digits. It is empty if that trace was not
// sampled, or if this delivery was not.
func (d *Delivery) TraceID(i int) string {
	if i >= len(d.traces) || !d.traces[i].IsValid() {
		return ""
	}
	return d.traces[i].String()
}

// failed gives the span the status of a failure of this class; empty means that there was none.
func failed(span trace.Span, class string) {
	if class != "" {
		span.SetAttributes(semconv.ErrorTypeKey.String(class))
		span.SetStatus(codes.Error, class)
	}
}

const notAttempted = "not_attempted"

var classNames = map[error]string{
	nil: "refused", sinks.ErrPermanent: "permanent", sinks.ErrTopicUnavailable: "topic_unavailable", sinks.ErrUnavailable: "unavailable",
	sinks.ErrNotAttempted: notAttempted,
}

// classOf returns the name of the class of an error of Deliver.
func classOf(err error) string {
	if sinks.IsThrottled(err) {
		return "throttled"
	}
	return classNames[sinks.ClassOf(err)]
}
