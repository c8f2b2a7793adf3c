package config

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// protocolHTTP is the one protocol by which spans are sent.
const protocolHTTP = "http/protobuf"

// Tracing says where spans are sent, by OTLP. Without an endpoint there are none.
type Tracing struct {
	// Endpoint is the URL of a collector. Spans are posted to its path with /v1/traces behind it.
	Endpoint URL `yaml:"endpoint"`
	// Protocol is protocolHTTP. It is a key, so that a file or a variable that asks for another one is refused.
	Protocol string `yaml:"protocol"`
	// Headers are sent with each request.
	Headers map[string]Secret `yaml:"headers"`
	// SampleRatio is the share of deliveries and transactions that get a span: 0 to 1.
	SampleRatio float64 `yaml:"sample_ratio"`
	// Insecure allows an endpoint with http on another host.
	Insecure bool `yaml:"insecure"`
	// CAFile replaces the system's certificate authorities. CertFile and KeyFile are the client's own certificate.
	CAFile   string `yaml:"ca_file"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`

	// WholePath says that Endpoint has the whole path, as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT does.
	WholePath bool `yaml:"-"`
	// Resource has what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of this process.
	Resource map[string]string `yaml:"-"`
}

// TracesURL returns the URL to which spans are posted .
func (t *Tracing) TracesURL() string {
	u, err := url.Parse(string(t.Endpoint))
	if err != nil {
		return "" // Load has refused it
	}
	if !t.WholePath {
		u.Path = path.Join("/", u.Path, "v1/traces")
	}
	return u.String()
}

// Variables of OpenTelemetry that begin with this concern the endpoint. Each has a second form for traces alone.
const otlpVariables = "OTEL_EXPORTER_OTLP_"

// endpointVariables are the variables that go with an endpoint, with the keys that they stand for.
var endpointVariables = []struct{ name, key string }{
	{"PROTOCOL", "protocol"}, {"CERTIFICATE", "ca_file"}, {"CLIENT_CERTIFICATE", "cert_file"}, {"CLIENT_KEY", "key_file"},
}

// applyOpenTelemetry takes from the variables of OpenTelemetry what the file does not say. Many programs of an environment read these
// variables, so the file beats them, as it beats DATABASE_URL. Those that go with an endpoint count only for an endpoint that comes from
// them as well: the headers of one endpoint are not for another. A service that embeds the connector has a tracer of its own.
func (l *loader) applyOpenTelemetry() {
	t := &l.config.Tracing
	if l.options.InProcess {
		*t = Tracing{}
		return
	}
	if l.isTracingOff() {
		t.Endpoint = ""
		return
	}
	name, whole := otlpVariables+"TRACES_ENDPOINT", true
	if l.env[name] == "" {
		name, whole = otlpVariables+"ENDPOINT", false
	}
	switch endpoint := URL(Clean(l.env[name])); {
	case t.Endpoint != "" && endpoint != "" && endpoint != t.Endpoint && !l.used[name]:
		l.warn("%s: tracing.endpoint is used, and the variable %[2]s, which has another value, is not, nor what goes with it; unset %[2]s",
			l.place("tracing.endpoint"), name)
	case t.Endpoint == "" && endpoint != "":
		t.Endpoint, t.WholePath = endpoint, whole
		l.origins["tracing.endpoint"] = origin{variable: name}
		l.applyEndpointVariables()
	}
	if t.Endpoint == "" {
		return
	}
	l.applySampler()
	l.applyResource()
}

// isTracingOff reports whether a variable switches tracing off, whatever the file says.
func (l *loader) isTracingOff() bool {
	const disabled, exporter = "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"
	switch off := l.env[disabled]; strings.ToLower(off) {
	case "true":
		return true
	case "", "false":
	default:
		l.wrongVariable(disabled, "%q is neither true nor false", off)
	}
	switch e := l.env[exporter]; e {
	case "none":
		return true
	case "", "otlp":
	default:
		if l.config.Tracing.Endpoint != "" || l.env[otlpVariables+"ENDPOINT"] != "" || l.env[otlpVariables+"TRACES_ENDPOINT"] != "" {
			l.wrongVariable(exporter, "%q is no exporter of outbox-cdc; write otlp, or none", e)
		}
	}
	return false
}

// otlp returns the variable of OpenTelemetry that ends with this name and is set, the one for traces first.
func (l *loader) otlp(name string) (variable, value string) {
	for _, variable := range []string{otlpVariables + "TRACES_" + name, otlpVariables + name} {
		if value := l.env[variable]; value != "" {
			return variable, value
		}
	}
	return "", ""
}

// applyEndpointVariables takes what goes with an endpoint from variables, unless the file has it.
func (l *loader) applyEndpointVariables() {
	t := &l.config.Tracing
	for _, v := range endpointVariables {
		path := "tracing." + v.key
		if variable, value := l.otlp(v.name); value != "" && !l.written[path] {
			l.field(path).SetString(value)
			l.origins[path] = origin{variable: variable}
		}
	}
	if variable, value := l.otlp("HEADERS"); value != "" && t.Headers == nil {
		l.origins["tracing.headers"] = origin{variable: variable}
		headers, ok := pairsOf(value)
		if !ok { // the text may hold a secret
			l.mistake("tracing.headers", "is no list of headers; write name=value,name=value, other characters of a value as %%XX")
		}
		t.Headers = make(map[string]Secret, len(headers))
		for name, value := range headers {
			t.Headers[name] = Secret(value)
		}
	}
	// The scheme http is how OpenTelemetry asks for a connection in clear.
	t.Insecure = t.Insecure || strings.HasPrefix(string(t.Endpoint), "http://")
}

// applySampler takes the ratio from OTEL_TRACES_SAMPLER, unless the file has it. Our spans have no parents, so the samplers that look at a
// parent mean the same as those that do not.
func (l *loader) applySampler() {
	const name, argument = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
	sampler := l.env[name]
	if sampler == "" || l.written["tracing.sample_ratio"] {
		return
	}
	ratio := &l.config.Tracing.SampleRatio
	switch strings.TrimPrefix(sampler, "parentbased_") {
	case "always_on":
		*ratio = 1
	case "always_off":
		*ratio = 0
	case "traceidratio":
		text := l.env[argument]
		if text == "" {
			*ratio = 1
			return
		}
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || !(f >= 0 && f <= 1) {
			l.wrongVariable(argument, "%q is no number between 0 and 1", text)
			return
		}
		*ratio = f
	default:
		l.wrongVariable(name, "%q is no sampler of outbox-cdc; write always_on, always_off or traceidratio, or one of them behind parentbased_", sampler)
	}
}

// applyResource takes what is said of this process.
func (l *loader) applyResource() {
	const name = "OTEL_RESOURCE_ATTRIBUTES"
	t := &l.config.Tracing
	t.Resource = map[string]string{}
	if text := l.env[name]; text != "" {
		attributes, ok := pairsOf(text)
		if !ok {
			l.wrongVariable(name, "is no list of attributes; write name=value,name=value, other characters of a value as %%XX")
		}
		t.Resource = attributes
	}
	if service := l.env["OTEL_SERVICE_NAME"]; service != "" {
		t.Resource["service.name"] = service
	}
}

// pairsOf reads name=value,name=value, where values are escaped as in URLs.
func pairsOf(text string) (map[string]string, bool) {
	pairs := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(pair) == "" {
			continue // a comma at the end
		}
		name, value, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if name = strings.TrimSpace(name); !ok || name == "" || err != nil {
			return map[string]string{}, false
		}
		pairs[name] = value
	}
	return pairs, true
}

// wrongVariable reports a mistake in a variable that sets no key.
func (l *loader) wrongVariable(name, format string, args ...any) {
	l.mistakes = append(l.mistakes, Mistake{Variable: name, Path: name, Text: fmt.Sprintf(format, args...)})
}

// tracing checks where spans are sent. Of an endpoint nothing is quoted, because it may hold a token.
func (v *validator) tracing(t *Tracing) {
	const endpoint = "tracing.endpoint"
	if !(t.SampleRatio >= 0 && t.SampleRatio <= 1) {
		v.mistake("tracing.sample_ratio", "%v is not between 0 and 1", t.SampleRatio)
	}
	for _, name := range sortedKeys(t.Headers) {
		if begin := headerName.FindString(name); begin != name {
			v.mistake("tracing.headers", "%q is no name of a header; write {name: value}", begin+"…")
		}
		if hasControl(string(t.Headers[name])) {
			v.mistake("tracing.headers", "the value of %q holds control characters", name)
		}
	}
	if t.Endpoint == "" {
		return
	}
	if t.Protocol != protocolHTTP {
		v.mistake("tracing.protocol", "%q is none that outbox-cdc has; write http/protobuf, and the port that the collector has for it (4318 by default)", t.Protocol)
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		v.mistake("tracing", "cert_file and key_file belong together; write both, or neither")
	}
	u := v.url(endpoint, t.Endpoint, &TLS{}, "https", "http")
	if u == nil {
		return
	}
	switch {
	case u.User != nil:
		v.mistake(endpoint, "has a user or a password; use headers (authorization) instead")
	case u.RawQuery != "" || u.Fragment != "":
		v.mistake(endpoint, "has a query or a fragment, which OTLP has no use for; remove it, and use headers for a token")
	case u.Scheme == "http" && !t.Insecure && !isLocal(u.Hostname()):
		v.mistake(endpoint, "http sends spans and headers in clear; write https, or allow it by insecure: true")
	case u.Scheme == "http" && len(t.Headers) > 0 && !isLocal(u.Hostname()):
		v.warn("%s: tracing.headers cross the network in clear; write https", endpoint)
	}
	if u.Scheme == "http" && slices.ContainsFunc([]string{t.CAFile, t.CertFile, t.KeyFile}, func(file string) bool { return file != "" }) {
		v.mistake(endpoint, "is http, which goes in clear, so ca_file, cert_file and key_file have no effect; write https, or remove them")
	}
}
