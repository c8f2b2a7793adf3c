package connector

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Status may be asked at any time: before Run, all the time while sessions come and go, and after Run.
func TestStatus(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.cfg.Delivery.Lanes = 2
	b.answerByType(func(name string) error {
		if name == "bad" {
			return sinks.ErrPermanent
		}
		return nil
	})
	idle := monitoring.SinkStatus{Name: "s", Type: b.cfg.Sinks[0].Type, Breaker: "closed"}
	before := New(b.cfg).Status()
	target, err := dsn.TargetOf(b.cfg.Source.DSN, "")
	if err != nil {
		t.Fatal(err)
	}
	idle.Objective.Trend.Start = before.At.UTC().Truncate(time.Hour).Add(-time.Hour)
	source := monitoring.SourceStatus{
		Name: b.cfg.Name, Slot: b.cfg.Source.Slot, Database: monitoring.DatabaseTarget{Address: target.Address, Name: target.Database},
	}
	stages := monitoring.Stages{Busy: []monitoring.StageBusy{
		{Stage: "decode"}, {Stage: "record"}, {Stage: "confirm"}, {Stage: "queue", Sink: "s"}, {Stage: "deliver", Sink: "s"},
	}}
	if diff := cmp.Diff(monitoring.Status{At: before.At, Source: source, LanesPerSink: 2, Stages: stages, Sinks: []monitoring.SinkStatus{idle}}, before); diff != "" {
		t.Errorf("before Run (-want +got):\n%s", diff)
	}

	r := b.run()
	ask := r.connector.Status
	askAllTheTime(t, ask)
	b.waitFor("streaming", func() bool { return ask().Streaming })
	for range 10 {
		b.event("a", "good")
	}
	b.event("b", "bad")
	counted := monitoring.Counts{Delivered: 10, Dead: 1, Errors: monitoring.ErrorCounts{monitoring.ErrorPermanent: 1}}
	b.waitFor("all are counted", func() bool {
		st := ask()
		return st.Sinks[0].Counts == counted && st.Sinks[0].CatchingUp() == 0 && st.InFlight == 0 && st.Confirmed >= st.Prefix
	})
	st := ask()
	if st.Role != monitoring.RoleLeader || st.Sessions != 1 || st.LastError != "" || st.Since.IsZero() || st.Confirmed == 0 || st.Prefix == 0 {
		t.Errorf("while it streams: %+v", st)
	}
	if sink := st.Sinks[0]; !sink.InSession || len(sink.Lanes) != 2 || sink.Cause != sinks.ErrPermanent.Error() || sink.Component().Status != monitoring.LevelOK {
		t.Errorf("the sink: %+v", sink)
	}

	b.waitFor("each stage has been at work", func() bool {
		return !slices.ContainsFunc(ask().Stages.Busy, func(s monitoring.StageBusy) bool { return s.Busy <= 0 || s.Busy > time.Since(before.At) })
	})

	second := b.run()
	b.waitFor("standing by", func() bool { return second.connector.Status().Role == monitoring.RoleStandby })
	if st := second.connector.Status(); st.Streaming || st.LastError != "" || st.Sessions != 0 || st.Sinks[0].InSession {
		t.Errorf("a standby: %+v", st)
	}
	second.stop()

	b.exec("select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = $1", b.cfg.Source.Slot)
	b.waitFor("streaming again", func() bool { return ask().Sessions == 2 })
	if st := ask(); !strings.Contains(st.LastError, "terminating connection") || st.LastErrorAt.Before(before.At) || !st.Streaming {
		t.Errorf("after a session has failed: %+v", st)
	}
	r.stop()
	st = ask()
	if st.Streaming || st.Role != "" || st.Sessions != 2 || st.Sinks[0].InSession || len(st.Sinks[0].Lanes) != 0 {
		t.Errorf("after Run: %+v", st)
	}
	if n := st.Sinks[0].Counts; n != counted {
		t.Errorf("after Run: %+v", n)
	}
}

// askAllTheTime asks until the test has ended, and checks that what belongs together is of one moment.
func askAllTheTime(t *testing.T, ask func() monitoring.Status) {
	stop, stopped := make(chan struct{}), make(chan error, 1)
	t.Cleanup(func() {
		close(stop)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	go func() {
		var sessions int64
		var counts monitoring.Counts
		var busy []monitoring.StageBusy
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			st := ask()
			sink := st.Sinks[0]
			switch {
			case st.Sessions < sessions || sink.Counts.Delivered < counts.Delivered || sink.Counts.Dead < counts.Dead:
				stopped <- errors.New("a counter went back")
				return
			case slices.ContainsFunc(busy, func(was monitoring.StageBusy) bool {
				return !slices.ContainsFunc(st.Stages.Busy, func(s monitoring.StageBusy) bool {
					return s.Stage == was.Stage && s.Sink == was.Sink && s.Busy >= was.Busy
				})
			}):
				stopped <- errors.New("a stage's time went back")
				return
			case sink.CatchingUp() > len(sink.Lanes) || sink.InSession != (len(sink.Lanes) == 2):
				stopped <- errors.New("numbers of different moments")
				return
			}
			sessions, counts, busy = st.Sessions, sink.Counts, st.Stages.Busy
		}
	}()
}
