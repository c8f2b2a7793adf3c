package main

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// Wrong settings of tracing are found before anything is connected to, by run and by validate, and no secret is told.
func TestTracingMistakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ variable, want string }{
		{"OTEL_EXPORTER_OTLP_CERTIFICATE=/nowhere/ca.pem", "tracing.ca_file"},
		{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/nowhere/cert.pem", "tracing: cert_file and key_file belong together"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_PROTOCOL: tracing.protocol"},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=canary", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: tracing.endpoint"},
		{"OTEL_EXPORTER_OTLP_HEADERS=canary", "OTEL_EXPORTER_OTLP_HEADERS: tracing.headers"},
		{"OTEL_TRACES_SAMPLER=xray", "OTEL_TRACES_SAMPLER"},
	} {
		environ := []string{
			"DATABASE_URL=postgres://127.0.0.1:1/shop", "OUTBOX_PUBLISHER_TYPE=stdout", "OTEL_EXPORTER_OTLP_ENDPOINT=https://127.0.0.1:1", c.variable,
		}
		for _, name := range []string{"run", "validate"} {
			got := command(t, environ, name)
			if got.code != exitcode.Config || !strings.Contains(got.stderr, c.want) || strings.Contains(got.stderr, "canary") {
				t.Errorf("%s with %s: code %d, stderr %q, want %q", name, c.variable, got.code, got.stderr, c.want)
			}
		}
	}
}
