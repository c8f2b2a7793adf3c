// Package otlp sends spans to a collector by OTLP over HTTP. It wraps the SDK of OpenTelemetry and its exporter, so that a collector that is away
// never holds anything back, has one line in the log, and no text of it or of its client reaches the log.
package otlp

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
)

const (
	// queueSize is how many spans wait for the collector, at most. Further ones are dropped. A span with all of its links takes about
	// 12 KiB, so that a collector that is away costs 12 MiB at most.
	queueSize = 1024
	batchSize = 256
	// sendEvery is how long a span waits for others.
	sendEvery = 2 * time.Second
	// exportTimeout is how long the collector may take for a batch. There is one try, because others wait behind it.
	exportTimeout = 10 * time.Second
	// flushTimeout is how long the end of the process waits for the collector.
	flushTimeout = 2 * time.Second
)

// Config says where spans are sent. All fields are required unless their comment says otherwise.
type Config struct {
	// Endpoint is the URL to post to.
	Endpoint string
	// Shown is the endpoint as the log may show it.
	Shown string
	// Headers go with each request. They may be empty.
	Headers map[string]string
	// TLS is for a scheme of https.
	TLS *tls.Config
	// SampleRatio is the share of spans that are made.
	SampleRatio float64
	// Resource is what is said of this process in addition, or instead of what is said otherwise. It may be empty.
	Resource map[string]string
	Logger   *slog.Logger
}

// Tracing is what a process sends spans by. The zero Tracing sends none.
type Tracing struct {
	provider *sdktrace.TracerProvider
	exporter *exporter
}

// Start makes a Tracing. It connects to nothing before there are spans. The SDK reads variables OTEL_… of the process by itself: all that
// concerns spans is given here, which beats them.
func Start(c Config) (*Tracing, error) {
	inner, err := otlptrace.New(context.Background(), newClient(&c))
	if err != nil {
		return nil, fmt.Errorf("make the exporter of spans: %w", err)
	}
	stop, cut := context.WithCancelCause(context.Background())
	e := &exporter{SpanExporter: inner, shown: c.Shown, logger: c.Logger, stop: stop, cut: cut}
	processor := sdktrace.NewBatchSpanProcessor(e,
		sdktrace.WithMaxQueueSize(queueSize), sdktrace.WithMaxExportBatchSize(batchSize),
		sdktrace.WithBatchTimeout(sendEvery), sdktrace.WithExportTimeout(exportTimeout),
	)
	return &Tracing{exporter: e, provider: sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(processor), sdktrace.WithResource(c.resource()),
		sdktrace.WithSampler(sdktrace.TraceIDRatioBased(c.SampleRatio)),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{
			AttributeValueLengthLimit: 1024, AttributeCountLimit: 32, LinkCountLimit: 128, AttributePerLinkCountLimit: 4, AttributePerEventCountLimit: 4, EventCountLimit: 4,
		}),
	)}, nil
}

// Provider returns nil if no spans are sent.
func (t *Tracing) Provider() trace.TracerProvider {
	if t == nil || t.provider == nil {
		return nil
	}
	return t.provider
}

// Stop sends the spans that are left, for flushTimeout at most.
func (t *Tracing) Stop() {
	if t == nil || t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { t.exporter.cut(errFlushTimeout) })()
	_ = t.provider.Shutdown(ctx) // the exporter has logged what was not sent
}

// resource says which process this is.
func (c *Config) resource() *resource.Resource {
	instance := uuid.NewString()
	if host, err := os.Hostname(); err == nil {
		instance = fmt.Sprintf("%s:%d", host, os.Getpid())
	}
	said := map[string]string{"service.name": "outbox-cdc", "service.version": buildinfo.Read().Version, "service.instance.id": instance}
	for name, value := range c.Resource {
		said[name] = cmp.Or(value, said[name])
	}
	attributes := []attribute.KeyValue{
		semconv.TelemetrySDKName("opentelemetry"), semconv.TelemetrySDKLanguageGo, semconv.TelemetrySDKVersion(sdk.Version()),
	}
	for name, value := range said {
		attributes = append(attributes, attribute.String(name, value))
	}
	return resource.NewWithAttributes(semconv.SchemaURL, attributes...)
}

var userAgent = "outbox-cdc/" + buildinfo.Read().Version

var errFlushTimeout = errors.New("the process ends")
