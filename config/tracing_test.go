package config

import (
	"maps"
	"strings"
	"testing"
)

// parseTracing parses a configuration with this section, and these variables.
func parseTracing(section string, environ ...string) (Config, []string, error) {
	environ = append(environ, "DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=stdout")
	return Parse("f.yml", []byte("tracing: "+section+"\n"), environ, Options{})
}

const collector = "OTEL_EXPORTER_OTLP_ENDPOINT=https://variable:4318"

func TestTracingEndpoint(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		section string
		environ []string
		want    string // where spans are posted
		warning string
	}{
		{"", nil, "", ""},
		{"", []string{"OTEL_SERVICE_NAME=x", "OTEL_TRACES_SAMPLER=nonsense", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, "", ""}, // of other programs
		{"", []string{collector}, "https://variable:4318/v1/traces", ""},
		{"", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector.monitoring:4318/base/"}, "http://collector.monitoring:4318/base/v1/traces", ""},
		{"", []string{collector, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://traces/own"}, "https://traces/own", ""},
		{"{endpoint: 'https://file:4318'}", nil, "https://file:4318/v1/traces", ""},
		{"{endpoint: 'https://file:4318'}", []string{collector}, "https://file:4318/v1/traces", "f.yml:1: tracing.endpoint is used, and the variable " +
			"OTEL_EXPORTER_OTLP_ENDPOINT, which has another value, is not, nor what goes with it; unset OTEL_EXPORTER_OTLP_ENDPOINT"},
		{"{endpoint: '${OTEL_EXPORTER_OTLP_ENDPOINT}'}", []string{collector}, "https://variable:4318/v1/traces", ""},
		{"{endpoint: 'http://localhost:4318'}", nil, "http://localhost:4318/v1/traces", ""},
		{"{endpoint: 'http://collector:4318', insecure: true}", nil, "http://collector:4318/v1/traces", ""},
		{
			"{endpoint: 'http://collector:4318', insecure: true, headers: {a: b}}", nil, "http://collector:4318/v1/traces",
			"tracing.endpoint: tracing.headers cross the network in clear; write https",
		},
		{"{endpoint: 'https://file:4318'}", []string{"OTEL_SDK_DISABLED=True"}, "", ""},
		{"{endpoint: 'https://file:4318'}", []string{"OTEL_TRACES_EXPORTER=none"}, "", ""},
		{"", []string{collector, "OTEL_SDK_DISABLED=false", "OTEL_TRACES_EXPORTER=otlp"}, "https://variable:4318/v1/traces", ""},
		{"", []string{"OTEL_TRACES_EXPORTER=zipkin"}, "", ""},
	} {
		got, warnings, err := parseTracing(c.section, c.environ...)
		if err != nil {
			t.Errorf("%s %q: %v", c.section, c.environ, err)
			continue
		}
		url := ""
		if got.Tracing.Endpoint != "" {
			url = got.Tracing.TracesURL()
		}
		if url != c.want || strings.Join(warnings, "\n") != c.warning {
			t.Errorf("%s %q: %q, warnings %q; want %q, %q", c.section, c.environ, url, warnings, c.want, c.warning)
		}
	}
}

// What goes with an endpoint comes from where the endpoint comes from: a header of one collector is not for another.
func TestTracingHeaders(t *testing.T) {
	t.Parallel()
	variables := []string{
		collector, "OTEL_EXPORTER_OTLP_HEADERS=api-key=a%20b%3D,tenant=1,", "OTEL_EXPORTER_OTLP_CERTIFICATE=/ca.pem",
		"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE=/traces-ca.pem", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/c.pem", "OTEL_EXPORTER_OTLP_CLIENT_KEY=/k.pem",
	}
	got, _, err := parseTracing("", variables...)
	if err != nil {
		t.Fatal(err)
	}
	tr := got.Tracing
	if !maps.Equal(tr.Headers, map[string]Secret{"api-key": "a b=", "tenant": "1"}) || tr.CAFile != "/traces-ca.pem" || tr.CertFile != "/c.pem" || tr.KeyFile != "/k.pem" {
		t.Errorf("got %+v", tr)
	}
	got, _, err = parseTracing("{endpoint: 'https://file:4318'}", variables...)
	if tr = got.Tracing; err != nil || tr.Headers != nil || tr.CAFile != "" || tr.CertFile != "" {
		t.Errorf("the variables of another endpoint count: %+v, %v", tr, err)
	}
	got, _, err = parseTracing("{headers: {own: x}, ca_file: /own.pem}", variables...)
	if tr = got.Tracing; err != nil || !maps.Equal(tr.Headers, map[string]Secret{"own": "x"}) || tr.CAFile != "/own.pem" {
		t.Errorf("the file does not beat the variables: %+v, %v", tr, err)
	}
	text, err := Effective(got)
	if err != nil || !strings.Contains(text, "own: '***'") {
		t.Errorf("a header is shown: %v\n%s", err, text)
	}
}

func TestTracingSampler(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		section string
		environ []string
		want    float64
	}{
		{"", nil, 1},
		{"{sample_ratio: 0.25}", nil, 0.25},
		{"{sample_ratio: 0}", []string{"OTEL_TRACES_SAMPLER=always_on"}, 0},
		{"", []string{"OTEL_TRACES_SAMPLER=always_off"}, 0},
		{"", []string{"OTEL_TRACES_SAMPLER=parentbased_always_on"}, 1},
		{"", []string{"OTEL_TRACES_SAMPLER=traceidratio"}, 1},
		{"", []string{"OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.01"}, 0.01},
	} {
		got, _, err := parseTracing(c.section, append(c.environ, collector)...)
		if err != nil || got.Tracing.SampleRatio != c.want {
			t.Errorf("%s %q: %v, %v, want %v", c.section, c.environ, got.Tracing.SampleRatio, err, c.want)
		}
	}
}

func TestTracingResource(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		environ []string
		want    map[string]string
	}{
		{nil, map[string]string{}},
		{[]string{"OTEL_RESOURCE_ATTRIBUTES=service.name=a,team=b%2Cc"}, map[string]string{"service.name": "a", "team": "b,c"}},
		{[]string{"OTEL_RESOURCE_ATTRIBUTES=service.name=a", "OTEL_SERVICE_NAME=b"}, map[string]string{"service.name": "b"}},
	} {
		got, _, err := parseTracing("", append(c.environ, collector)...)
		if err != nil || !maps.Equal(got.Tracing.Resource, c.want) {
			t.Errorf("%q: %v, %v, want %v", c.environ, got.Tracing.Resource, err, c.want)
		}
	}
}

func TestTracingMistakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		section string
		environ []string
		want    string
	}{
		{"{endpoint: 'localhost:4318'}", nil, "f.yml:1: tracing.endpoint: is no URL; write https://host, other characters than letters and digits of a password as %XX"},
		{"{endpoint: 'http://collector:4318'}", nil, "f.yml:1: tracing.endpoint: http sends spans and headers in clear; write https, or allow it by insecure: true"},
		{"{endpoint: 'https://u:canary@h'}", nil, "f.yml:1: tracing.endpoint: has a user or a password; use headers (authorization) instead"},
		{"{endpoint: 'https://h/?key=canary'}", nil, "f.yml:1: tracing.endpoint: has a query or a fragment, which OTLP has no use for; remove it, and use headers for a token"},
		{"{endpoint: 'ftp://h'}", nil, `f.yml:1: tracing.endpoint: has the scheme "ftp"; write https, http`},
		{"{endpoint: 'http://localhost:4318', ca_file: /x}", nil, "f.yml:1: tracing.endpoint: is http, which goes in clear, so ca_file, cert_file and key_file have no effect; write https, or remove them"},
		{"{endpoint: 'https://h', cert_file: /x}", nil, "f.yml:1: tracing: cert_file and key_file belong together; write both, or neither"},
		{"{sample_ratio: 1.5}", nil, "f.yml:1: tracing.sample_ratio: 1.5 is not between 0 and 1"},
		{"{sample_ratio: 1%}", nil, `f.yml:1: tracing.sample_ratio: "1%" is no number`},
		{"{sample_ratio: NaN}", nil, `f.yml:1: tracing.sample_ratio: "NaN" is no number`},
		{"{headers: {'api key': canary}}", nil, `f.yml:1: tracing.headers: "api…" is no name of a header; write {name: value}`},
		{`{headers: {key: "canary\nx"}}`, nil, `f.yml:1: tracing.headers: the value of "key" holds control characters`},
		{"{endpoint: 'https://h:4317', protocol: grpc}", nil, `f.yml:1: tracing.protocol: "grpc" is none that outbox-cdc has; write http/protobuf, and the port that the collector has for it (4318 by default)`},
		{"", []string{collector, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"}, `OTEL_EXPORTER_OTLP_PROTOCOL: tracing.protocol: "http/json" is none that outbox-cdc has; ` +
			"write http/protobuf, and the port that the collector has for it (4318 by default)"},
		{"", []string{collector, "OTEL_EXPORTER_OTLP_HEADERS=canary"}, "OTEL_EXPORTER_OTLP_HEADERS: tracing.headers: is no list of headers; " +
			"write name=value,name=value, other characters of a value as %XX"},
		{"", []string{collector, "OTEL_TRACES_SAMPLER=xray"}, `OTEL_TRACES_SAMPLER: "xray" is no sampler of outbox-cdc; write always_on, always_off or traceidratio, or one of them behind parentbased_`},
		{"", []string{collector, "OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=2"}, `OTEL_TRACES_SAMPLER_ARG: "2" is no number between 0 and 1`},
		{"", []string{collector, "OTEL_RESOURCE_ATTRIBUTES=x"}, "OTEL_RESOURCE_ATTRIBUTES: is no list of attributes; write name=value,name=value, other characters of a value as %XX"},
		{"", []string{collector, "OTEL_TRACES_EXPORTER=zipkin"}, `OTEL_TRACES_EXPORTER: "zipkin" is no exporter of outbox-cdc; write otlp, or none`},
		{"", []string{"OTEL_SDK_DISABLED=yes"}, `OTEL_SDK_DISABLED: "yes" is neither true nor false`},
		{"{endpont: x}", nil, "f.yml:1: tracing.endpont: unknown key; known here: endpoint, protocol, headers, sample_ratio, insecure, ca_file, cert_file, key_file"},
	} {
		_, _, err := parseTracing(c.section, c.environ...)
		if got := errorText(err); got != c.want {
			t.Errorf("%s %q:\n%s\nwant\n%s", c.section, c.environ, got, c.want)
		}
	}
}

// A service that embeds the connector hands over a tracer of its own, so variables mean nothing to it, nor can they be wrong.
func TestTracingWithinAService(t *testing.T) {
	t.Parallel()
	got, _, err := Parse("", []byte("sinks: [{type: stdout}]"), []string{"DATABASE_URL=postgres://localhost/shop", collector, "OTEL_SDK_DISABLED=yes"}, Options{InProcess: true})
	if err != nil || got.Tracing.Endpoint != "" {
		t.Errorf("got %+v, %v", got.Tracing, err)
	}
}
