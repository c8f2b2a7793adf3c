package monitoring

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// answerTo returns what /metrics answers to a client with this header Accept.
func answerTo(t *testing.T, h http.Handler, accept string) (contentType, body string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Header().Get("Content-Type"), w.Body.String()
}

// sampleNames returns the names and labels of the samples of an answer.
func sampleNames(body string) (all []string) {
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, "#") {
			name, _, _ := strings.Cut(line, "} ")
			name, _, _ = strings.Cut(name, " ")
			all = append(all, strings.ReplaceAll(name, `.0"`, `"`)) // le="1.0" in OpenMetrics
		}
	}
	slices.Sort(all)
	return all
}

// A client that asks for OpenMetrics gets exemplars, and the same series otherwise. All others get what they got before.
func TestOpenMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := NewMetrics("p_", reg)
	reg.MustRegister(NewCollector("p_", func() Status { return Status{Sinks: []SinkStatus{{Name: "events"}}} }))
	const exemplar = `# {trace_id="0af7651916cd43dd8448eb211c80319c"}`
	o, ok := m.EventDuration.WithLabelValues("events").(prometheus.ExemplarObserver)
	if !ok {
		t.Fatal("the histogram takes no exemplars")
	}
	o.ObserveWithExemplar(0.5, prometheus.Labels{"trace_id": "0af7651916cd43dd8448eb211c80319c"})
	m.CleanupDeleted.WithLabelValues("outbox").Inc()
	h := Handler(reg, &Health{}, nil)
	kind, open := answerTo(t, h, "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5")
	if !strings.HasPrefix(kind, "application/openmetrics-text") || strings.Count(open, exemplar) != 1 || !strings.HasSuffix(open, "# EOF\n") {
		t.Errorf("OpenMetrics: %s\n%s", kind, open)
	}
	if strings.Contains(open, "_created") {
		t.Error("OpenMetrics has series _created")
	}
	for _, accept := range []string{"", "*/*", "text/plain", "text/plain;version=0.0.4"} {
		kind, plain := answerTo(t, h, accept)
		if !strings.HasPrefix(kind, "text/plain") || strings.Contains(plain, "trace_id") || strings.Contains(plain, "# EOF") {
			t.Errorf("%q: %s\n%s", accept, kind, plain)
		}
		without := func(all []string) []string { // what promhttp counts of its own answers
			return slices.DeleteFunc(all, func(s string) bool { return strings.HasPrefix(s, "promhttp_") })
		}
		if a, b := without(sampleNames(plain)), without(sampleNames(open)); !slices.Equal(a, b) {
			t.Errorf("%q: other series than in OpenMetrics:\n%q\n%q", accept, a, b)
		}
	}
}
