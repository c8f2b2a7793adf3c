package monitoring

import (
	"strings"
	"testing"
	"time"
)

// A sink is in exactly one state, which its condition gives.
func TestState(t *testing.T) {
	t.Parallel()
	now := time.Now()
	catchingUp := []LaneStatus{{}, {CatchingUp: true}}
	for name, test := range map[string]struct {
		sink SinkStatus
		want State
	}{
		"well":                             {SinkStatus{InSession: true}, StateOK},
		"without a session":                {SinkStatus{Paused: true}, ""},
		"a lane looks into an empty table": {SinkStatus{InSession: true, Lanes: catchingUp}, StateOK},
		"a lane delivers parked rows":      {SinkStatus{InSession: true, Lanes: catchingUp, Parked: 1}, StateCatchingUp},
		"parked rows wait for their time":  {SinkStatus{InSession: true, Lanes: []LaneStatus{{Held: 1}}, Parked: 1}, StateOK},
		"failing":                          {SinkStatus{InSession: true, Failing: true, Lanes: catchingUp, Parked: 1}, StateDegraded},
		"unreachable":                      {SinkStatus{InSession: true, Check: CheckStatus{Unreachable: "refused"}}, StateDegraded},
		"refusing":                         {SinkStatus{InSession: true, Since: SinceTimes{Refusing: now}}, StateDegraded},
		"away":                             {SinkStatus{InSession: true, BreakerSince: now, Lanes: catchingUp, Parked: 1}, StateAway},
		"suspect":                          {SinkStatus{InSession: true, SuspectSince: now, Lanes: catchingUp, Parked: 1}, StateSuspect},
		"paused while it is away":          {SinkStatus{InSession: true, Paused: true, BreakerSince: now}, StatePaused},
	} {
		if got := test.sink.State(); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestLaneWorks(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, test := range map[string]struct {
		sink SinkStatus
		lane LaneStatus
		want bool
	}{
		"idle":                                  {SinkStatus{}, LaneStatus{}, true},
		"delivers":                              {SinkStatus{}, LaneStatus{InFlight: 5}, true},
		"one of its aggregates is held":         {SinkStatus{}, LaneStatus{InFlight: 5, Held: 1}, true},
		"refused, and an aggregate is held":     {SinkStatus{}, LaneStatus{RefusedAll: true, Held: 1}, false},
		"refused, and others wait":              {SinkStatus{}, LaneStatus{RefusedAll: true, InFlight: 1}, false},
		"refused for good, and nothing waits":   {SinkStatus{}, LaneStatus{RefusedAll: true}, true},
		"some were accepted, the rest is tried": {SinkStatus{}, LaneStatus{Failing: true, InFlight: 1}, false},
		"the destination is left alone":         {SinkStatus{BreakerSince: now}, LaneStatus{}, false},
		"its rows cannot be read":               {SinkStatus{Unreadable: "no answer"}, LaneStatus{CatchingUp: true}, false},
		"the rows of others cannot be read":     {SinkStatus{Unreadable: "no answer"}, LaneStatus{}, true},
		"paused":                                {SinkStatus{Paused: true, BreakerSince: now}, LaneStatus{RefusedAll: true, Held: 1}, true},
	} {
		test.sink.Lanes = []LaneStatus{test.lane}
		if got := test.sink.Works(&test.lane); got != test.want || (test.sink.Working() == 1) != test.want {
			t.Errorf("%s: %t, want %t", name, got, test.want)
		}
	}
}

// A process that streams, one that has lost PostgreSQL, and one that stands by show different things of their lanes and of what waits.
func TestMetricsOfRoles(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0)
	sink := SinkStatus{Name: "s", Lanes: make([]LaneStatus, 2), InSession: true, CountedAt: at, Parked: 3, DeadLetters: 4}
	gone := sink
	gone.Lanes, gone.InSession = nil, false
	standby := gone
	standby.CountedAt = time.Time{}
	count := new(int64(5))
	full := Status{At: at, LanesPerSink: 2, InFlight: 6, Accounts: &AccountsStatus{UpTo: time.Unix(1_700_000_000, 0), WorkedAt: at, Missing: count}}
	for name, test := range map[string]struct {
		change func(*Status)
		want   map[string]int // series
	}{
		"streams": {
			func(s *Status) { s.Role, s.Streaming, s.Sinks = RoleLeader, true, []SinkStatus{sink} },
			map[string]int{
				"worker_health": 2, "events_in_queue": 3, "settled_timestamp_seconds": 1, "sink_state": 6, "in_flight": 1, "epoch": 1,
				"oldest_undelivered_timestamp_seconds": 1, "unaccounted_events": 1, "session_start_timestamp_seconds": 1,
			},
		},
		"has lost PostgreSQL": {
			func(s *Status) { s.Role, s.Sinks = RoleLeader, []SinkStatus{gone} },
			map[string]int{"worker_health": 2, "events_in_queue": 3, "settled_timestamp_seconds": 1, "unaccounted_events": 1},
		},
		"stands by": {
			func(s *Status) { s.Role, s.Sinks = RoleStandby, []SinkStatus{standby} },
			map[string]int{},
		},
		"before the first count": {
			func(s *Status) {
				s.Role, s.Streaming, s.Sinks = RoleLeader, true, []SinkStatus{sink, standby}
				s.Sinks[1].InSession, s.Sinks[1].Name, s.Accounts = true, "new", nil
			},
			map[string]int{
				"worker_health": 4, "events_in_queue": 1, "settled_timestamp_seconds": 1, "sink_state": 12, "in_flight": 2, "epoch": 1,
				"oldest_undelivered_timestamp_seconds": 1, "session_start_timestamp_seconds": 1,
			},
		},
	} {
		st := full
		test.change(&st)
		for _, f := range []string{
			"worker_health", "events_in_queue", "settled_timestamp_seconds", "sink_state", "in_flight", "epoch", "oldest_undelivered_timestamp_seconds",
			"unaccounted_events", "session_start_timestamp_seconds",
		} {
			if got := len(collected(&st)[f]); got != test.want[f] {
				t.Errorf("%s: %d series of %s, want %d", name, got, f, test.want[f])
			}
		}
	}
}

// collected returns the values that the table makes of a status: by the name of the metric and the values of its labels.
func collected(s *Status) map[string]map[string]float64 {
	all := map[string]map[string]float64{}
	for _, f := range families() {
		if f.collect == nil {
			continue
		}
		all[f.Name] = map[string]float64{}
		f.collect(s, func(value float64, labels ...string) { all[f.Name][strings.Join(labels, " ")] = value })
	}
	return all
}
