package config

import (
	"strings"
	"testing"
)

// parseSink reads one sink, written as a flow mapping.
func parseSink(t *testing.T, sink string) (c Config, warnings []string, err error) {
	t.Helper()
	file := "source: {dsn: postgres://localhost/shop}\nsinks: [" + sink + "]\n"
	return Parse("outbox.yaml", []byte(file), nil, Options{})
}

func TestContentTypes(t *testing.T) {
	t.Parallel()
	for sink, want := range map[string]string{ // what the mistake says; "" is none
		`{type: kafka, brokers: [a:9092], content_type: application/avro}`:                             "",
		`{type: redis_stream, url: redis://a, content_type: text/plain; charset=utf-8}`:                "",
		`{type: webhook, url: https://a, body: raw, content_type: application/vnd.shop+json}`:          "",
		`{type: webhook, url: https://a, body: cloudevents-structured, content_type: application/xml}`: "",
		`{type: event_bus, url: nats://a, content_type: application/x-protobuf}`:                       "",
		`{type: webhook, url: https://a, content_type: application/xml}`:                               "has no effect with body: envelope",
		`{type: kafka, brokers: [a:9092], content_type: json}`:                                         "is no media type",
		`{type: redis_stream, url: redis://a, content_type: "a/b; c"}`:                                 "is no media type",
		`{type: webhook, url: https://a, body: raw, content_type: "a/b\r\nX-Evil: 1"}`:                 "is no media type",
		`{type: event_bus, url: nats://a, content_type: "a/é"}`:                                        "is no media type",
	} {
		_, _, err := parseSink(t, sink)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), "sinks[0].content_type: ") || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: want %q, got %v", sink, want, err)
		}
	}
}

// TestSecretWithoutItsPrefix: a receiver that has the secret with whsec_ would refuse every signature.
func TestSecretWithoutItsPrefix(t *testing.T) {
	t.Parallel()
	for secret, warned := range map[string]bool{
		"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw":                         true, // 24 bytes
		"C2FVsBQIhrscChlQIMV+b5sSYspob7oD":                         true,
		strings.Repeat("abcd", 21) + "ab==":                        true,  // 64 bytes
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw":                   false, // as it should be
		"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa==":                         false, // 22 bytes
		strings.Repeat("abcd", 22):                                 false, // 66 bytes
		"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS":                          false, // no base64
		"correct horse battery staple, twice":                      false,
		"8f14e45fceea167a5a36dedd4bea25438f14e45fceea167a5a36dedd": false, // openssl rand -hex 28
	} {
		_, warnings, err := parseSink(t, "{type: webhook, url: https://a, secret: '"+secret+"'}")
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(warnings, "\n")
		if strings.Contains(got, "sinks[0].secret[0] looks like base64") != warned {
			t.Errorf("%s: %q", secret, got)
		}
		if strings.Contains(got, secret) {
			t.Errorf("tells the secret: %q", got)
		}
	}
}
