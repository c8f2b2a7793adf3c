package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAskHealth(t *testing.T) {
	t.Parallel()
	const degraded = `{"status": "degraded", "components": {"session": {"status": "ok"}, "sink:stream": {"status": "degraded", "detail": "away"}}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.String() {
		case "/livez":
			fmt.Fprint(w, "ok")
		case "/readyz":
			fmt.Fprint(w, degraded)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, degraded)
		}
	}))
	defer server.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	troubles := []string{"sink:stream is degraded: away"}
	for probe, want := range map[Probe]Health{
		ProbeLive:   {OK: true, Status: "ok"},
		ProbeReady:  {OK: true, Status: "degraded", Troubles: troubles},
		ProbeStrict: {Status: "degraded", Troubles: troubles},
	} {
		got, err := AskHealth(t.Context(), "0.0.0.0:"+port, probe)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", probe, err, diff)
		}
	}
}

func TestAskHealthOfNobody(t *testing.T) {
	t.Parallel()
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("it is silent"))
	defer cancel()
	for listen, want := range map[string]string{
		strings.TrimPrefix(silent.URL, "http://"): "it is silent",
		"127.0.0.1:1": "refused",
		"a b:1":       "no address",
	} {
		if _, err := AskHealth(ctx, listen, ProbeReady); err == nil || !strings.Contains(err.Error(), want) && ctx.Err() == nil {
			t.Errorf("%s: %v, want %q", listen, err, want)
		}
	}
}
