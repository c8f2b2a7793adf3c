package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver is a collector. It answers as answer says, after it has kept the spans.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	spans    []*tracepb.Span
	resource map[string]string
	requests []*http.Request
}

func newReceiver(t *testing.T, start func(*httptest.Server), answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{resource: map[string]string{}}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		unzipped, err := gzip.NewReader(q.Body)
		if err != nil {
			t.Errorf("the body is not compressed: %v", err)
			return
		}
		body, err := io.ReadAll(unzipped)
		var request coltracepb.ExportTraceServiceRequest
		if err = errors.Join(err, proto.Unmarshal(body, &request)); err != nil {
			t.Errorf("no request to export: %v", err)
			return
		}
		r.mu.Lock()
		r.requests = append(r.requests, q)
		for _, rs := range request.GetResourceSpans() {
			for _, a := range rs.GetResource().GetAttributes() {
				r.resource[a.GetKey()] = a.GetValue().GetStringValue()
			}
			for _, ss := range rs.GetScopeSpans() {
				r.spans = append(r.spans, ss.GetSpans()...)
			}
		}
		r.mu.Unlock()
		answer(w, q)
	}))
	start(r.Server)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) names() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.spans {
		all = append(all, s.GetName())
	}
	return all
}

func accept(http.ResponseWriter, *http.Request) {}

// buffer is a log that several goroutines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func begin(t *testing.T, endpoint string, change func(*Config)) (*Tracing, *buffer) {
	t.Helper()
	log := &buffer{}
	c := Config{
		Endpoint: endpoint, Shown: "http://shown", SampleRatio: 1, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Headers: map[string]string{"api-key": "secret-key"},
	}
	if change != nil {
		change(&c)
	}
	tracing, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	return tracing, log
}

func span(t *Tracing, name string) {
	_, s := t.Provider().Tracer("test").Start(context.Background(), name)
	s.End()
}

func TestExport(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, (*httptest.Server).Start, accept)
	tracing, log := begin(t, r.URL+"/v1/traces", func(c *Config) { c.Resource = map[string]string{"service.name": "shop-cdc", "team": "a"} })
	span(tracing, "one")
	span(tracing, "two")
	tracing.Stop()
	if got := strings.Join(r.names(), " "); got != "one two" {
		t.Errorf("spans %q", got)
	}
	q := r.requests[0]
	if q.URL.Path != "/v1/traces" || q.Header.Get("Content-Type") != "application/x-protobuf" || q.Header.Get("Api-Key") != "secret-key" ||
		!strings.HasPrefix(q.UserAgent(), "outbox-cdc/") {
		t.Errorf("request %v %v", q.URL, q.Header)
	}
	instance := r.resource["service.instance.id"]
	version := r.resource["service.version"]
	if instance == "" || version == "" {
		t.Errorf("resource %v", r.resource)
	}
	for _, name := range []string{"service.instance.id", "service.version", "telemetry.sdk.name", "telemetry.sdk.language", "telemetry.sdk.version"} {
		delete(r.resource, name)
	}
	if want := map[string]string{"service.name": "shop-cdc", "team": "a"}; !maps.Equal(r.resource, want) {
		t.Errorf("resource %v, want %v", r.resource, want)
	}
	if log.String() != "" {
		t.Errorf("log: %s", log)
	}
}

func TestSampleRatio(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, (*httptest.Server).Start, accept)
	tracing, _ := begin(t, r.URL, func(c *Config) { c.SampleRatio = 0.1 })
	for range 1000 {
		span(tracing, "s")
	}
	tracing.Stop()
	if n := len(r.names()); n < 40 || n > 200 {
		t.Errorf("%d spans of 1000", n)
	}
}

func TestTLSIsVerified(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, (*httptest.Server).StartTLS, accept)
	r.Config.ErrorLog = nil
	tracing, log := begin(t, r.URL, func(c *Config) { c.TLS = &tls.Config{MinVersion: tls.VersionTLS12} })
	span(tracing, "s")
	tracing.Stop()
	if len(r.names()) != 0 || !strings.Contains(log.String(), "certificate is not trusted") {
		t.Errorf("%v, %s", r.names(), log)
	}
	roots := x509.NewCertPool()
	roots.AddCert(r.Certificate())
	tracing, log = begin(t, r.URL, func(c *Config) { c.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots} })
	span(tracing, "s")
	tracing.Stop()
	if len(r.names()) != 1 || log.String() != "" {
		t.Errorf("%v, %s", r.names(), log)
	}
}

// A collector that is away has one line in the log, whatever is lost, and nothing goes to the error handler of the process.
func TestCollectorIsAway(t *testing.T) { //nolint:paralleltest // the error handler is the process's
	var handled []error
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { handled = append(handled, err) }))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	tracing, log := begin(t, "http://"+address+"/secret-path", nil)
	began := time.Now()
	for range 3 * queueSize {
		span(tracing, "s")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("the spans took %s to be made", took)
	}
	tracing.Stop()
	text := log.String()
	if strings.Count(text, "\n") != 1 || !strings.Contains(text, "spans cannot be sent") || !strings.Contains(text, `why="connection refused"`) || strings.Contains(text, "secret") {
		t.Errorf("log: %s", text)
	}
	if len(handled) > 0 {
		t.Errorf("handled: %v", handled)
	}
}

// A collector that takes requests and does not answer delays the end of the process by flushTimeout at most.
func TestCollectorHangs(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r := newReceiver(t, (*httptest.Server).Start, func(_ http.ResponseWriter, q *http.Request) {
		select {
		case <-release:
		case <-q.Context().Done():
		}
	})
	defer close(release)
	tracing, log := begin(t, r.URL, nil)
	for range 4 * batchSize {
		span(tracing, "s")
	}
	began := time.Now()
	tracing.Stop()
	if took := time.Since(began); took < flushTimeout-100*time.Millisecond || took > flushTimeout+2*time.Second {
		t.Errorf("Stop took %s", took)
	}
	tracing.provider.Shutdown(context.Background()) //nolint:errcheck // it waits for nothing more
	waitFor(t, func() bool { return strings.Contains(log.String(), "the process ends") })
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not happen within 10 s")
		}
	}
}

// What the collector answers may quote the headers, and stays out of the log. A redirect is not followed.
func TestCollectorRefuses(t *testing.T) {
	t.Parallel()
	elsewhere := newReceiver(t, (*httptest.Server).Start, accept)
	for _, tt := range []struct {
		answer http.HandlerFunc
		why    string
	}{
		{func(w http.ResponseWriter, q *http.Request) {
			http.Error(w, "no such key: "+q.Header.Get("Api-Key"), http.StatusUnauthorized)
		}, "HTTP status 401"},
		{func(w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "HTTP status 307"},
	} {
		r := newReceiver(t, (*httptest.Server).Start, tt.answer)
		tracing, log := begin(t, r.URL, nil)
		span(tracing, "s")
		tracing.Stop()
		if text := log.String(); !strings.Contains(text, tt.why) || strings.Contains(text, "secret") {
			t.Errorf("log: %s", text)
		}
	}
	if len(elsewhere.names()) > 0 {
		t.Error("the redirect was followed")
	}
}

func TestLogIsRateLimited(t *testing.T) {
	t.Parallel()
	var e exporter
	now := time.Now()
	var lines []string
	fail := func(after time.Duration, n int) {
		now = now.Add(after)
		if e.fails(n, now) {
			lines = append(lines, "fails")
		}
	}
	work := func() {
		if n := e.works(); n > 0 {
			lines = append(lines, "works")
		}
	}
	work()
	fail(0, 1)
	fail(time.Hour, 1) // still the same outage
	work()
	fail(time.Minute, 1)
	work()
	for range 100 { // flapping
		fail(time.Second, 1)
		work()
	}
	fail(sayEvery, 1)
	if got := strings.Join(lines, " "); got != "fails works fails works fails" {
		t.Errorf("log: %s", got)
	}
}

func TestZeroTracing(t *testing.T) {
	t.Parallel()
	for _, tracing := range []*Tracing{nil, {}} {
		if p := tracing.Provider(); p != nil {
			t.Errorf("provider %v", p)
		}
		tracing.Stop()
	}
}
