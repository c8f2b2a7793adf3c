package monitoring

import (
	"encoding/json"
	"io"
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
		if r := h.Report(); r.Ready || r.Status != LevelFailed {
			t.Errorf("before any component is known: %+v", r)
		}
		start := time.Now().UTC()
		h.Set("session", OK("streaming"))
		h.Set("sink:events", Degraded("unavailable: dial"))
		h.SetRole(RoleLeader)
		time.Sleep(time.Minute)
		h.Set("session", OK("draining"))
		h.Set("sink:events", Degraded("unavailable: time-out"))
		want := Report{Status: LevelDegraded, Ready: true, Role: RoleLeader, Components: map[string]Component{
			"session":     {Status: LevelOK, Detail: "draining", Since: start},
			"sink:events": {Status: LevelDegraded, Detail: "unavailable: time-out", Since: start},
		}}
		if diff := cmp.Diff(want, h.Report()); diff != "" {
			t.Errorf("one component down (-want +got):\n%s", diff)
		}

		h.Set("recorder", Failed("no space left"))
		if r := h.Report(); r.Ready || r.Status != LevelFailed {
			t.Errorf("one component failed, one degraded: %+v", r)
		}
		h.Set("recorder", OK(""))
		h.Set("sink:events", OK(""))
		r := h.Report()
		if !r.Ready || r.Status != LevelOK {
			t.Errorf("all components are ok: %+v", r)
		}
		if got := r.Components["sink:events"].Since; !got.Equal(start.Add(time.Minute)) {
			t.Errorf("since = %v, want the moment it came back", got)
		}
		h.SetOnly("session", OK("standing by"))
		want = Report{Status: LevelOK, Ready: true, Role: RoleLeader, Components: map[string]Component{
			"session": {Status: LevelOK, Detail: "standing by", Since: start},
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
	with, without := httptest.NewServer(Handler(reg, &h, nil)), httptest.NewServer(Handler(nil, &h, nil))
	t.Cleanup(with.Close)
	t.Cleanup(without.Close)
	schema := readSchema(t, "readyz.schema.json")

	expect := func(server *httptest.Server, method, path string, status int) (body []byte) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := server.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err = io.ReadAll(response.Body); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != status {
			t.Errorf("%s %s: status %d, want %d", method, path, response.StatusCode, status)
		}
		if status != 200 && status != 503 || strings.HasPrefix(path, "/metrics") {
			return body
		}
		if ct := response.Header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("%s %s: content type %q", method, path, ct)
		}
		if method == "HEAD" {
			if len(body) > 0 {
				t.Errorf("HEAD %s: a body of %d bytes", path, len(body))
			}
			return body
		}
		var value any
		if err := json.Unmarshal(body, &value); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if strings.HasPrefix(path, "/readyz") {
			if err := schema.check(path, value, schema.Defs); err != nil {
				t.Errorf("%v in %s", err, body)
			}
		}
		return body
	}
	// readyz wants these statuses of /readyz, and of /readyz?strict.
	readyz := func(lenient, strict int) {
		t.Helper()
		for query, want := range map[string]int{
			"": lenient, "?strict=false": lenient, "?strict=0": lenient, "?strict": strict, "?strict=": strict, "?strict=true": strict, "?strict=1": strict,
		} {
			expect(with, "GET", "/readyz"+query, want)
			expect(with, "HEAD", "/readyz"+query, want)
		}
		if got := string(expect(with, "GET", "/livez", 200)); got != "{\n  \"status\": \"ok\"\n}\n" {
			t.Errorf("/livez says %s", got)
		}
		expect(with, "HEAD", "/livez", 200)
	}
	readyz(503, 503) // nothing is known yet
	h.Set("session", Failed("starting"))
	readyz(503, 503)
	h.Set("session", OK("standing by: the slot is in use by another process"))
	h.SetRole(RoleStandby)
	readyz(200, 200)
	var got Report
	if err := json.Unmarshal(expect(with, "GET", "/readyz", 200), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h.Report(), got); diff != "" {
		t.Errorf("a standby's body (-want +got):\n%s", diff)
	}
	h.SetRole(RoleLeader)
	h.Set("sink:events", Degraded("unavailable: dial"))
	readyz(200, 503)
	h.Set("recorder", Failed("no space left on device"))
	readyz(503, 503)
	h.Set("recorder", OK(""))
	h.Set("sink:events", OK("3 parked"))
	readyz(200, 200)

	for query, tells := range map[string]string{
		"?strict=yes": "true or false", "?strict=true&strict=false": "at most once", "?strickt": "only parameter", "?verbose=1": "only parameter", "?strict=%zz": "cannot be read",
	} {
		if body := string(expect(with, "GET", "/readyz"+query, 400)); !strings.Contains(body, tells) {
			t.Errorf("/readyz%s: %s, want %q", query, body, tells)
		}
	}
	if body := string(expect(with, "GET", "/metrics", 200)); !strings.Contains(body, "p_sessions_total 1") {
		t.Errorf("metrics lack p_sessions_total:\n%s", body)
	}
	for _, test := range []struct {
		server       *httptest.Server
		method, path string
		status       int
		tells        string
	}{
		{without, "GET", "/metrics", 404, `nothing is at "/metrics"; the paths are /livez, /readyz`},
		{with, "GET", "/", 404, `nothing is at "/"; the paths are /metrics, /livez, /readyz`},
		{with, "GET", "/metrics/", 404, "the paths are /metrics, /livez, /readyz"},
		{with, "POST", "/metric", 404, "the paths are /metrics, /livez, /readyz"},
		{with, "GET", "/%3Cscript%3E", 404, `nothing is at "/<script>"`},
		{with, "POST", "/readyz", 405, "/readyz answers GET and HEAD only; so do all paths: /metrics, /livez, /readyz"},
		{with, "DELETE", "/metrics", 405, "/metrics answers GET and HEAD only"},
	} {
		if body := string(expect(test.server, test.method, test.path, test.status)); !strings.Contains(body, test.tells) {
			t.Errorf("%s %s says %q, want %q", test.method, test.path, body, test.tells)
		}
	}
}
