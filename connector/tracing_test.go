package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/tracing"
)

// recordSpans returns a tracer, and what records its spans.
func recordSpans() (trace.Tracer, *tracetest.SpanRecorder) {
	spans := tracetest.NewSpanRecorder()
	return tracing.NewTracer(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))), spans
}

// Each Deliver has a span, which begins and ends with it, is in its context and has the class of its failure. The exemplar of an event
// is the event's own trace.
func TestLaneSpans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tracer, spans := recordSpans()
		var within []trace.SpanID
		b := newLaneBench(t, func(ctx context.Context, n int, batch []sinks.Message) []error {
			time.Sleep(50 * time.Millisecond)
			within = append(within, trace.SpanContextFromContext(ctx).SpanID())
			if n == 1 {
				return fail(batch, map[string]error{"a1": errors.New("refused: a payload")})
			}
			return nil
		})
		registry := prometheus.NewRegistry()
		b.measures = newLaneMeasures(monitoring.NewMetrics("", registry), "s")
		b.spans = tracing.ForSink(tracer, tracing.Destination{Sink: "s", System: "kafka", Topic: "orders"})
		b.run()
		var events []*delivery
		for i, id := range []string{"a1", "b1", "c1"} {
			d := &delivery{entry: uint64(i), hash: int64(i)}
			d.Message = sinks.Message{Event: &outbox.Event{ID: id, AggregateID: id}, LSN: 1, Index: int64(i)}
			d.Event.Metadata = fmt.Appendf(nil, `{"traceparent":"00-%032x-%016x-0%d"}`, i+1, i+1, min(i, 1)) // that of a1 was not sampled
			d.CommitTime = time.Now().Add(-time.Duration(i) * 10 * time.Second)                              // a bucket for each
			events = append(events, d)
		}
		b.in <- handed{events, time.Now()}
		time.Sleep(10 * time.Second)
		b.stop()
		var got []string
		for i, s := range spans.Ended() {
			got = append(got, fmt.Sprintf("%s %s-%s %d links %s", s.Name(), s.StartTime().Sub(b.start), s.EndTime().Sub(b.start), len(s.Links()), s.Status().Description))
			if s.SpanContext().SpanID() != within[i] {
				t.Errorf("Deliver %d has another span in its context", i)
			}
		}
		want := []string{"deliver orders 0s-50ms 3 links refused"}
		if len(got) != 2 || got[0] != want[0] {
			t.Errorf("spans %q", got)
		}
		if got, want := exemplars(t, registry), []string{fmt.Sprintf("%032x", 2), fmt.Sprintf("%032x", 3)}; !slices.Equal(got, want) {
			t.Errorf("exemplars %q, want %q", got, want)
		}
	})
}

// exemplars returns the trace ids in a registry's buckets, sorted.
func exemplars(t *testing.T, registry *prometheus.Registry) (ids []string) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, bucket := range m.GetHistogram().GetBucket() {
				for _, l := range bucket.GetExemplar().GetLabel() {
					ids = append(ids, l.GetValue())
				}
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// failingLedger is a ledger whose Commit returns this error.
type failingLedger struct {
	checkpoint.Ledger
	err error
}

func (f failingLedger) Commit(context.Context, checkpoint.Batch) error { return f.err }

func TestRecorderSpans(t *testing.T) {
	t.Parallel()
	plain := failingLedger{}
	if l := newConnector(Config{}, nil).traced(plain); l != checkpoint.Ledger(plain) {
		t.Errorf("without a tracer the ledger is %T", l)
	}
	tracer, spans := recordSpans()
	c := newConnector(Config{Tracer: tracer, Source: Source{Table: "public.event_outbox"}}, nil)
	batch := checkpoint.Batch{Outcomes: []checkpoint.Outcomes{{Rows: make([]checkpoint.Outcome, 2)}, {Rows: make([]checkpoint.Outcome, 3)}}}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{fmt.Errorf("commit: %w", &pgconn.PgError{Code: "57P01", Message: "secret", Detail: "secret"}), "57P01"},
		{checkpoint.ErrFenced, "fenced"},
		{fmt.Errorf("commit: %w", context.Canceled), "interrupted"},
		{errors.New("secret: the connection is lost"), "unavailable"},
	} {
		if err := c.traced(failingLedger{err: tt.err}).Commit(t.Context(), batch); !errors.Is(err, tt.err) {
			t.Errorf("Commit returns %v, want %v", err, tt.err)
		}
		s := spans.Ended()[len(spans.Ended())-1]
		count := ""
		for _, a := range s.Attributes() {
			if a.Key == "messaging.batch.message_count" {
				count = a.Value.String()
			}
		}
		if s.Name() != "record" || s.Status().Description != tt.want || count != "5" {
			t.Errorf("%v: %s %v, %s outcomes", tt.err, s.Name(), s.Status(), count)
		}
	}
}
