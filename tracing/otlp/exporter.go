package otlp

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// sayEvery is the shortest time between two lines of the log that say that spans cannot be sent.
const sayEvery = 10 * time.Minute

// exporter sends spans by another exporter, and says when that does not work. It returns no error, because the SDK would hand it to the
// error handler of the process, which is not ours alone.
type exporter struct {
	sdktrace.SpanExporter
	shown  string
	logger *slog.Logger
	stop   context.Context //nolint:containedctx // it ends when the process no longer waits for the collector
	cut    context.CancelCauseFunc

	mu      sync.Mutex
	failing bool      // the last export failed
	said    bool      // the log says so
	saidAt  time.Time // when a line of the log last said so
	lost    int       // spans, since the first of the exports that failed
}

// ExportSpans sends spans.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.stop, func() { cancel(context.Cause(e.stop)) })()
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		if n := e.works(); n > 0 {
			e.logger.Info("spans are sent again", "endpoint", e.shown, "lost", n)
		}
		return nil
	}
	if e.fails(len(spans), time.Now()) {
		e.logger.Warn("spans cannot be sent and are dropped; deliveries go on as before", "endpoint", e.shown, "why", reason(err))
	}
	return nil
}

// works notes that an export has worked. It returns how many spans were lost before, if the log says that some are.
func (e *exporter) works() (lost int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.said {
		lost = e.lost
	}
	e.failing, e.said, e.lost = false, false, 0
	return lost
}

// fails notes that an export of n spans has failed, and reports whether the log is to say so.
func (e *exporter) fails(n int, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := !e.failing
	e.failing = true
	e.lost += n
	if !first || e.said || !e.saidAt.IsZero() && now.Sub(e.saidAt) < sayEvery {
		return false
	}
	e.said, e.saidAt = true, now
	return true
}

// reason says why an export failed. The error itself holds the URL, and its path may be a secret.
func reason(err error) string {
	var status statusError
	var dns *net.DNSError
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var expired x509.CertificateInvalidError
	var timeout net.Error
	switch {
	case errors.As(err, &status):
		return status.Error()
	case errors.Is(err, errFlushTimeout):
		return "the process ends, and the collector has not answered in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &dns):
		return "its host is not found"
	case errors.As(err, &authority), errors.As(err, &name), errors.As(err, &expired):
		return "its certificate is not trusted; name its authority in tracing.ca_file (OTEL_EXPORTER_OTLP_CERTIFICATE)"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	}
	return "no connection"
}
