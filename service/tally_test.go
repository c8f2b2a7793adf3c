package service

import (
	"reflect"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

type countedBy monitoring.Status

func (c countedBy) Status() monitoring.Status { return monitoring.Status(c) }

// No counter goes back when a connector takes the place of another one, also that of a sink that was not configured for a while.
func TestTallyAddsUp(t *testing.T) {
	t.Parallel()
	sink := func(name string, n int64) monitoring.SinkStatus {
		return monitoring.SinkStatus{
			Name: name, Counts: monitoring.Counts{Delivered: n, Failed: 2 * n, Dead: 3 * n, Discarded: 4 * n, Unparked: 5 * n, Parked: 6 * n, Retried: 7 * n, Errors: monitoring.ErrorCounts{n, 2 * n, 3 * n, 4 * n, 5 * n}},
			Members: []monitoring.MemberStatus{{Name: "m", Delivered: n}},
		}
	}
	var ta tally
	if _, none := ta.status(); !none {
		t.Error("a state before the first connector")
	}
	for _, step := range []struct{ counted, want []monitoring.SinkStatus }{
		{[]monitoring.SinkStatus{sink("a", 1), sink("b", 10)}, []monitoring.SinkStatus{sink("a", 1), sink("b", 10)}},
		{[]monitoring.SinkStatus{sink("b", 100)}, []monitoring.SinkStatus{sink("b", 110)}},
		{[]monitoring.SinkStatus{sink("c", 1), sink("a", 2)}, []monitoring.SinkStatus{sink("c", 1), sink("a", 3)}},
	} {
		ta.follow(countedBy{Sessions: 1, Sinks: step.counted})
		if st, none := ta.status(); none || !reflect.DeepEqual(st.Sinks, step.want) {
			t.Errorf("got %+v, want %+v", st.Sinks, step.want)
		}
	}
	stages := func(n int64, sinks ...string) monitoring.Stages {
		t := time.Duration(n)
		s := monitoring.Stages{RecorderRetries: n, ReaderWaited: monitoring.ReaderWaited{Lanes: t, Window: 2 * t, Recorder: 3 * t}}
		for _, sink := range append(sinks, "") {
			s.Busy = append(s.Busy, monitoring.StageBusy{Stage: "deliver", Sink: sink, Busy: 4 * t})
		}
		return s
	}
	for _, step := range []struct{ counted, want monitoring.Stages }{
		{stages(1, "a", "b"), stages(1, "a", "b")},
		{stages(10, "b"), stages(11, "b")},
		{stages(100, "b"), stages(111, "b")},
	} {
		ta.follow(countedBy{Stages: step.counted})
		if st, _ := ta.status(); !reflect.DeepEqual(st.Stages, step.want) {
			t.Errorf("got %+v, want %+v", st.Stages, step.want)
		}
	}
	if st, _ := ta.status(); st.Sessions != 3 {
		t.Errorf("%d sessions", st.Sessions)
	}
}
