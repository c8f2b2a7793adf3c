package monitoring

import (
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// rigged is a connector whose Status a test changes.
type rigged struct {
	health Health
	status Status
	recent *Recent
}

func newRigged() *rigged {
	g := &rigged{}
	g.recent = NewRecent(func() Status {
		st := g.status
		st.At = time.Now()
		return st
	}, &g.health)
	return g
}

// ask asks for /status, and checks the answer against its schema.
func (g *rigged) ask(t *testing.T) Instance {
	t.Helper()
	response := httptest.NewRecorder()
	Handler(nil, &g.health, g.recent).ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/status", http.NoBody))
	var value any
	if err := json.Unmarshal(response.Body.Bytes(), &value); err != nil || response.Code != http.StatusOK {
		t.Fatalf("%d: %v in %s", response.Code, err, response.Body)
	}
	s := readSchema(t, "status.schema.json")
	if err := s.check("answer", value, s.Defs); err != nil {
		t.Errorf("%v in %s", err, response.Body)
	}
	var i Instance
	if err := json.Unmarshal(response.Body.Bytes(), &i); err != nil {
		t.Fatal(err)
	}
	return i
}

// /status says all that Status has, in a form that its schema describes.
func TestInstance(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newRigged()
		if i := g.ask(t); i.Health.Status != LevelFailed || i.Streaming || len(i.Sinks) != 0 {
			t.Errorf("before the first connector: %+v", i)
		}
		now := time.Now().UTC()
		ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
		g.health.Set("session", OK("streaming"))
		g.status = Status{
			Source: SourceStatus{Name: "orders", Slot: "shop", Database: DatabaseTarget{Address: "db:5432", Name: "shop"}},
			Role:   RoleLeader, Streaming: true, Since: ago(60), Sessions: 2, Epoch: 5, LastError: "closed", LastErrorAt: ago(70),
			InFlight: 7, Lag: 1500 * time.Millisecond, LagBytes: 0x100, Confirmed: 0x1_0000_0010, Prefix: 0x1_0000_0000, Invalid: 1, Unrouted: 2,
			Sinks: []SinkStatus{
				{
					Name: "away", Type: "kafka", InSession: true, Breaker: "open", BreakerSince: ago(20), AsksAt: ago(-9), Failing: true, FailingSince: ago(25),
					Cause: "dial: refused", Parked: 5, OldestParked: time.Minute, DeadLetters: 3, CountedAt: ago(10), Lanes: []LaneStatus{{CatchingUp: true}, {CatchingUp: true, Held: 1, InFlight: 2}, {}, {InFlight: 3}},
					Events:  EventTimes{DeliveredAt: ago(40), OldestCommittedAt: ago(61)},
					Counts:  Counts{Delivered: 9, Failed: 8, Dead: 7, Discarded: 6, Unparked: 4},
					Members: []MemberStatus{{Name: "a", Delivered: 9, Away: true}},
					Objective: ObjectiveStatus{
						Within: time.Second, Ratio: .9, Known: true, Month: EventCounts{Events: 100, InTime: 95}, SixHours: EventCounts{Events: 10, InTime: 8},
						Trend: HourTrend{Start: ago(3600), Hour: EventCounts{Events: 3, InTime: 2}, DayBefore: EventCounts{Events: 5, InTime: 5}},
					},
				},
				{Name: "unreachable", Type: "webhook", InSession: true, Cause: "an older failure", Check: CheckStatus{Unreachable: "no route", Since: ago(5)}},
				{Name: "paused", Type: "webhook", InSession: true, Cause: "an older failure", Paused: true, Since: SinceTimes{Paused: ago(3)}},
				{
					Name: "well", Type: "stdout", InSession: true, Breaker: "closed", Cause: "an older failure",
					Backlog: &BacklogStatus{ID: 3, Reason: "init", FiledAt: ago(9), Walked: 5, Parked: 4, Left: new(int64(20)), Rate: new(2.5)},
				},
			},
			Accounts: &AccountsStatus{Missing: new(int64(1)), Example: "e1", UpTo: ago(8), WorkedAt: ago(2)},
			Stages:   Stages{Busy: []StageBusy{{Stage: StageDecode, Busy: 1500 * time.Millisecond}, {Stage: StageDeliver, Sink: "away", Busy: time.Minute}}},
			Cleanup:  &CleanupStatus{EndedAt: ago(4), Took: 1500 * time.Millisecond, Rows: 12, Partitions: 3, Complete: true, Detail: "2 rows stay"},
		}
		i := g.ask(t)
		host, _ := os.Hostname()
		want := Instance{
			At:      now,
			Process: Process{Host: host, PID: os.Getpid(), Version: i.Process.Version, Started: i.Process.Started, Name: "orders", Slot: "shop", Database: DatabaseTarget{Address: "db:5432", Name: "shop"}},
			Role:    RoleLeader, Streaming: true, Since: ago(60), Sessions: 2, Epoch: 5, LastError: &LastError{Text: "closed", At: ago(70)},
			Stream: &StreamReport{
				LagSeconds: 1.5, LagBytes: 256, Confirmed: "1/10", Prefix: "1/0", Written: "1/110", InFlight: 7,
				Forecast: Forecast{Trend: TrendNothingWaits}, Invalid: 1, Unrouted: 2,
			},
			Forecast: &Forecast{Trend: TrendUnknown},
			Sinks: []SinkReport{
				{
					Name: "away", Type: "kafka", InSession: true, Status: LevelDegraded, Detail: g.status.Sinks[0].Component().Detail,
					Condition: ConditionAway, State: StateAway, Since: ago(25), Cause: "dial: refused", AsksAt: ago(-9),
					Rows:  &RowReport{Parked: 5, DeadLetters: 3, OldestSeconds: 60, CountedAt: ago(10)},
					Lanes: 4, CatchingUp: 2, Held: 1, InFlight: 5, DeliveredAt: ago(40), OldestUndeliveredAt: ago(61), Counts: CountReport{Delivered: 9, Failed: 8, Dead: 7, Discarded: 6, Unparked: 4},
					Objective: &ObjectiveReport{
						WithinSeconds: 1, Percent: 90, InTimePercent: new(95.0), BudgetLeft: i.Sinks[0].Objective.BudgetLeft, BurnSixHours: i.Sinks[0].Objective.BurnSixHours,
						Trend: TrendReport{Start: ago(3600), Hour: CountInTime{Events: 3, InTime: 2}, DayBefore: CountInTime{Events: 5, InTime: 5}},
					},
					Forecast: Forecast{Trend: TrendUnknown}, Members: []MemberReport{{Name: "a", Delivered: 9, Away: true}},
				},
				{
					Name: "unreachable", Type: "webhook", InSession: true, Status: LevelDegraded, Detail: g.status.Sinks[1].Component().Detail,
					Condition: ConditionUnreachable, State: StateDegraded, Since: ago(5), Cause: "no route", Forecast: Forecast{Trend: TrendUnknown},
				},
				{
					Name: "paused", Type: "webhook", InSession: true, Status: LevelOK, Detail: g.status.Sinks[2].Component().Detail,
					Condition: ConditionPaused, State: StatePaused, Since: ago(3), Forecast: Forecast{Trend: TrendUnknown},
				},
				{
					Name: "well", Type: "stdout", InSession: true, Status: LevelOK, Condition: ConditionOK, State: StateOK, Forecast: Forecast{Trend: TrendUnknown},
					Backlog: &BacklogReport{ID: 3, Reason: "init", Filed: ago(9), Walked: 5, Parked: 4, Left: new(int64(20)), Rate: new(2.5), SecondsLeft: new(8.0)},
				},
			},
			Stages:  []StageReport{{Stage: StageDecode, BusySeconds: 1.5}, {Stage: StageDeliver, Sink: "away", BusySeconds: 60}},
			Cleanup: &PassReport{EndedAt: ago(4), Seconds: 1.5, Rows: 12, Partitions: 3, Complete: true, Detail: "2 rows stay"},
			Verify:  &VerifyReport{Unaccounted: new(int64(1)), Example: "e1", UpTo: ago(8), WorkedAt: ago(2)},
			Health:  g.health.Report(),
		}
		if diff := cmp.Diff(want, i); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if o := i.Sinks[0].Objective; math.Abs(o.BudgetLeft-.5) > 1e-9 || math.Abs(o.BurnSixHours-2) > 1e-9 {
			t.Errorf("5 of 100 events late, where 10 may be, and 2 of 10 in six hours: %+v", o)
		}
	})
}

// A process that stands by says nothing of the stream, and nothing of sinks that another process uses.
func TestInstanceOfAStandby(t *testing.T) {
	t.Parallel()
	g := newRigged()
	g.status = Status{Role: RoleStandby, Since: time.Now(), Lag: time.Hour, Sinks: []SinkStatus{{Name: "events", Breaker: "open", BreakerSince: time.Now(), Cause: "of before"}}}
	g.status.Stages.Busy = []StageBusy{{Stage: StageDecode}}
	i := g.ask(t)
	if i.Stages != nil || i.Sinks[0].Objective != nil || i.Stream != nil || i.Streaming || i.Role != RoleStandby {
		t.Errorf("%+v", i)
	}
	if s := i.Sinks[0]; s.Condition != "" || s.Status != "" || s.Detail != "" || s.Cause != "" || s.Rows != nil || s.Forecast.Trend != TrendUnknown {
		t.Errorf("%+v", s)
	}
}

// The schema that the documentation shows refuses answers that are wrong.
func TestStatusSchemaRefuses(t *testing.T) {
	t.Parallel()
	s := readSchema(t, "status.schema.json")
	g := newRigged()
	g.status = Status{Role: RoleLeader, Sinks: []SinkStatus{{Name: "events"}}}
	right, err := json.Marshal(g.recent.Instance())
	if err != nil {
		t.Fatal(err)
	}
	for from, test := range map[string]struct{ to, tells string }{
		`"pid":`:              {`"pod":`, "pid is missing"},
		`"sinks":[{`:          {`"sinks":[1,{`, "answer.sinks[0]: 1 is no object"},
		`"delivered":0`:       {`"delivered":0.5`, "0.5 is no integer"},
		`"lag_seconds":0`:     {`"lag_seconds":"0"`, "0 is no number"},
		`"role":"leader"`:     {`"role":"chief"`, "chief is none of"},
		`"trend":"unknown"`:   {`"trend":"up"`, "up is none of"},
		`"streaming":false`:   {`"streaming":null`, "is no boolean"},
		`"health":{`:          {`"health":{"x":1,`, "x is not in the schema"},
		`"in_session":false,`: {`"in_session":false,"since":"soon",`, "is no time"},
	} {
		wrong := strings.Replace(string(right), from, test.to, 1)
		var value any
		if err := json.Unmarshal([]byte(wrong), &value); err != nil || wrong == string(right) {
			t.Fatalf("%s: %v in %s", from, err, wrong)
		}
		if err := s.check("answer", value, s.Defs); err == nil || !strings.Contains(err.Error(), test.tells) {
			t.Errorf("%s: %v, want %q", from, err, test.tells)
		}
	}
}
