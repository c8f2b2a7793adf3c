package admin

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// anInstance is what an instance of the world's connector says.
func anInstance() monitoring.Instance {
	at := time.Now().Add(-time.Hour) // its clock is wrong
	return monitoring.Instance{
		At: at, Role: monitoring.RoleLeader, Streaming: true, Since: at.Add(-time.Minute),
		Process: monitoring.Process{Host: "one", PID: 7, Name: "shop", Slot: "shop", Version: "1.0", Started: at.Add(-2 * time.Minute)},
		Stream: &monitoring.StreamReport{
			LagSeconds: 3, LagBytes: 4096, WALRate: new(100.0), Forecast: monitoring.Forecast{Trend: monitoring.TrendCatchingUp, CaughtUpAt: at.Add(time.Minute)},
			Kept: &monitoring.KeptReport{LostAt: at.Add(3 * time.Hour), AskedAt: at},
		},
		Sinks: []monitoring.SinkReport{{
			Name: "a", InSession: true, Condition: monitoring.ConditionAway, Since: at.Add(-30 * time.Second), Cause: "refused", AsksAt: at.Add(10 * time.Second),
			Rows: &monitoring.RowReport{Parked: 123_456, DeadLetters: 7, OldestSeconds: 90}, Rate: &monitoring.DeliveryRate{DeliveredNow: 5, DeliveredMinute: 6},
			Forecast:  monitoring.Forecast{Trend: monitoring.TrendGrowing},
			Objective: &monitoring.ObjectiveReport{WithinSeconds: 1, Percent: 90, BurnHour: 14.4},
		}},
		Stages: []monitoring.StageReport{{Stage: monitoring.StageDecode, BusySeconds: 1}, {Stage: monitoring.StageDeliver, Sink: "a", BusySeconds: 60}},
	}
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// The screen has what the instance knows and the database does not, with times by PostgreSQL's clock.
func TestStatusAsksTheInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		in := anInstance()
		in.Process.Database.Name = w.text("select current_database()")
		answerJSON(rw, in)
	}))
	t.Cleanup(server.Close)
	cfg := StatusConfig{Config: w.admin, Listen: strings.TrimPrefix(server.URL, "http://")}
	s, err := ReadStatus(t.Context(), cfg)
	if err != nil || len(s.Instances) != 1 {
		t.Fatal(err, s.Instances, s.Unknown)
	}
	a := s.Sinks[0]
	if *a.Rows.Parked != 123_456 || *a.Rows.Dead != 7 || a.Condition != monitoring.ConditionAway || *a.RateNow != 5 || a.Forecast != monitoring.TrendGrowing ||
		a.Objective == nil || a.Objective.BurnHour != 14.4 {
		t.Errorf("sink %+v", a)
	}
	if since := s.At.Sub(*a.Since); since < 29*time.Second || since > 31*time.Second {
		t.Errorf("away since %v, want 30 s", since)
	}

	// A server that is down: the instance is asked all the same.
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	name := w.text("select current_database()")
	down.Close()
	cfg.DSN = fmt.Sprintf("postgres://nobody@%s/%s", down.Addr(), name)
	began := time.Now()
	s, err = ReadStatus(t.Context(), cfg)
	if err == nil || s.Database.Error == "" || s.Level != monitoring.LevelFailed || len(s.Sinks) != 1 || *s.Slot.LagSeconds != 3 || *s.Slot.LostAfterSeconds != 3*3600 || time.Since(began) > 5*time.Second {
		t.Errorf("a server that is down: %v after %s: %+v", err, time.Since(began), s)
	}
}

// What answers at an address may be anything. None of it is taken for an instance, and the reason is said.
func TestStatusDistrustsAnswers(t *testing.T) {
	t.Parallel()
	cfg := StatusConfig{Config: Config{Name: "shop"}}
	cfg.Source.Slot = "shop"
	tooLong := `{"process": {"name": "` + strings.Repeat("x", mostAnswer) + `"}}` // there is a second to send it, on a busy machine too
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"another program": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }, "another program"},
		"other JSON":      {func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, []int{1}) }, "not that of an instance"},
		"no /status":      {http.NotFound, "no /status"},
		"another Host":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMisdirectedRequest) }, "http.hosts"},
		"redirect":        {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "another program"},
		"silence":         {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer for 1s"},
		"another slot": {func(w http.ResponseWriter, _ *http.Request) {
			in := anInstance()
			in.Process.Slot = "other"
			answerJSON(w, in)
		}, `another connector answers there: "shop" on slot "other"`},
		"too long": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, tooLong)
		}, "too long"},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "{")
		}, "ends early"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(test.answer)
			t.Cleanup(server.Close)
			began := time.Now()
			got := cfg.askAll(t.Context(), []string{strings.TrimPrefix(server.URL, "http://")})
			if got[0].err == nil || !strings.Contains(got[0].err.Error(), test.want) || strings.Contains(got[0].err.Error(), "http://") {
				t.Errorf("got %v, want %q", got[0].err, test.want)
			}
			if took := time.Since(began); took > 10*askPatience { // the machine may be busy
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestAskable(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		"127.0.0.1:9640": "127.0.0.1:9640", ":9640": "127.0.0.1:9640", "0.0.0.0:9640": "127.0.0.1:9640", "[::]:9640": "[::1]:9640", "db:80": "db:80",
	} {
		if got := askable(listen); got != want {
			t.Errorf("%s: %s, want %s", listen, got, want)
		}
	}
}
