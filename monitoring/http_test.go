package monitoring

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHealthReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var h Health
		if r := h.Report(); r.Ready {
			t.Error("ready before any component is known")
		}
		start := time.Now().UTC()
		h.Set("session", Component{OK: true, Detail: "streaming"})
		h.Set("sink:events", Component{Detail: "unavailable: dial"})
		h.SetRole(RoleLeader)
		time.Sleep(time.Minute)
		h.Set("session", Component{OK: true, Detail: "draining"})
		h.Set("sink:events", Component{Detail: "unavailable: time-out"})
		want := Report{Role: RoleLeader, Components: map[string]Component{
			"session":     {OK: true, Detail: "draining", Since: start},
			"sink:events": {Detail: "unavailable: time-out", Since: start},
		}}
		if diff := cmp.Diff(want, h.Report()); diff != "" {
			t.Errorf("one component down (-want +got):\n%s", diff)
		}

		h.Set("sink:events", Component{OK: true})
		r := h.Report()
		if !r.Ready {
			t.Errorf("not ready with all components ok: %+v", r)
		}
		if got := r.Components["sink:events"].Since; !got.Equal(start.Add(time.Minute)) {
			t.Errorf("since = %v, want the moment it came back", got)
		}
		h.SetOnly("session", Component{OK: true, Detail: "standing by"})
		want = Report{Ready: true, Role: RoleLeader, Components: map[string]Component{
			"session": {OK: true, Detail: "standing by", Since: start},
		}}
		if diff := cmp.Diff(want, h.Report()); diff != "" {
			t.Errorf("one component left (-want +got):\n%s", diff)
		}
		r = h.Report()
		r.Components["session"] = Component{}
		if !h.Report().Ready {
			t.Error("a report shares its map with Health")
		}
	})
}

func TestHandler(t *testing.T) {
	t.Parallel()
	var h Health
	reg := NewRegistry()
	reg.MustRegister(NewCollector("p_", func() Status { return Status{Sessions: 1} }))
	with, without := Handler(reg, &h), Handler(nil, &h)

	expect := func(handler http.Handler, method, path string, status int) *httptest.ResponseRecorder {
		t.Helper()
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		if rec.Code != status {
			t.Errorf("%s %s: status %d, want %d", method, path, rec.Code, status)
		}
		return rec
	}
	expect(with, "GET", "/livez", 200)
	expect(with, "GET", "/readyz", 503)
	h.Set("replication", Component{OK: true, Detail: "slot in use by another process"})
	h.SetRole(RoleStandby)
	var got Report
	rec := expect(with, "GET", "/readyz", 200)
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h.Report(), got); diff != "" {
		t.Errorf("a standby's body (-want +got):\n%s", diff)
	}
	if ct := rec.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type = %q", ct)
	}
	h.Set("sink:events", Component{Detail: "unavailable"})
	expect(with, "GET", "/readyz", 503)
	expect(with, "GET", "/livez", 200)
	if body := expect(with, "GET", "/metrics", 200).Body.String(); !strings.Contains(body, "p_sessions_total 1") {
		t.Errorf("metrics lack p_sessions_total:\n%s", body)
	}
	expect(without, "GET", "/metrics", 404)
	expect(with, "POST", "/readyz", 405)
	expect(with, "GET", "/", 404)
}
