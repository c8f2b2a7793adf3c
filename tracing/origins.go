package tracing

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// maxLinks is how many links a span has at most. It is also the limit of OpenTelemetry's SDK.
const maxLinks = 128

// origins are the spans in which the events of a batch were written.
type origins struct {
	sampled, others []trace.SpanContext
	traces          []trace.TraceID // by message: its trace, if that was sampled
}

// originsOf reads the metadata of the messages. It stops when there are enough sampled origins for all links, so that a large batch costs no
// more than a small one.
func originsOf(batch []sinks.Message) origins {
	o := origins{traces: make([]trace.TraceID, len(batch))}
	type id struct {
		trace trace.TraceID
		span  trace.SpanID
	}
	seen := map[id]struct{}{}
	for i := range batch {
		if len(o.sampled) == maxLinks {
			break
		}
		c := originOf(&batch[i])
		if !c.IsValid() {
			continue
		}
		if c.IsSampled() {
			o.traces[i] = c.TraceID()
		}
		key := id{c.TraceID(), c.SpanID()}
		if _, known := seen[key]; known { // several events of one transaction
			continue
		}
		seen[key] = struct{}{}
		if c.IsSampled() {
			o.sampled = append(o.sampled, c)
		} else if len(o.others) < maxLinks {
			o.others = append(o.others, c)
		}
	}
	return o
}

// links returns the links of a span, those to sampled spans first, because the others lead to nothing that was stored.
func (o *origins) links() []trace.Link {
	all := append(o.sampled, o.others...)
	links := make([]trace.Link, 0, maxLinks)
	for _, c := range all[:min(len(all), maxLinks)] {
		links = append(links, trace.Link{SpanContext: c})
	}
	return links
}

// originOf returns the span context in the metadata of a message. It is invalid if there is none, or one that W3C Trace Context does not
// allow. The tracestate is left out: a link needs none, and with it many links would need much memory.
func originOf(m *sinks.Message) trace.SpanContext {
	parent := format.ContextOf(m.Event.Metadata).TraceParent
	if parent == "" {
		return trace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": parent})
	return trace.SpanContextFromContext(ctx)
}
