package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Recorder makes the spans of the recorder's transactions.
type Recorder struct {
	tracer trace.Tracer
	start  []trace.SpanStartOption
}

// ForRecorder makes the Recorder of an outbox, whose table is schema.table. tracer is not nil.
func ForRecorder(tracer trace.Tracer, table string) *Recorder {
	about := []attribute.KeyValue{
		semconv.DBSystemNamePostgreSQL, semconv.MessagingSystemKey.String("outbox"), semconv.MessagingOperationTypeSettle,
		semconv.MessagingOperationName("record"), semconv.MessagingDestinationName(table),
	}
	return &Recorder{tracer: tracer, start: []trace.SpanStartOption{
		trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(about...),
	}}
}

// Start begins the span of a transaction that records this many outcomes.
func (r *Recorder) Start(ctx context.Context, outcomes int) (context.Context, Transaction) {
	ctx, span := r.tracer.Start(ctx, "record", r.start...)
	if !span.IsRecording() {
		return ctx, Transaction{}
	}
	span.SetAttributes(semconv.MessagingBatchMessageCount(outcomes))
	return ctx, Transaction{span}
}

// Transaction is the span of one transaction of the recorder. The zero Transaction is none.
type Transaction struct{ span trace.Span }

// Failure is why a transaction has failed. The zero Failure says that it has not.
type Failure struct {
	Class    string
	SQLState string // of PostgreSQL's error; empty if it was none
}

// End ends the span.
func (t Transaction) End(f Failure) {
	if t.span == nil {
		return
	}
	if f.SQLState != "" {
		t.span.SetAttributes(semconv.DBResponseStatusCode(f.SQLState))
	}
	failed(t.span, f.Class)
	t.span.End()
}
