package connector

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// The life of a sink, as Status, /readyz and the log tell it.
func TestSinkState(t *testing.T) {
	t.Parallel()
	away := fmt.Errorf("dial: %w", sinks.ErrUnavailable)
	delivered := func(n int64) monitoring.Counts { return monitoring.Counts{Delivered: n} }
	well := monitoring.SinkStatus{Name: "s", Type: "kafka", Breaker: "closed"}
	with := func(st monitoring.SinkStatus, change func(*monitoring.SinkStatus)) monitoring.SinkStatus {
		change(&st)
		return st
	}
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var health monitoring.Health
		s := newSinkState(observedSink{name: "s", kind: "kafka", health: &health, logger: slog.New(slog.NewTextHandler(&log, nil))})
		began := time.Now()
		at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
		var want monitoring.SinkStatus
		step := func(name string, do func(), change func(*monitoring.SinkStatus), logged string) {
			t.Helper()
			log.Reset()
			do()
			want = with(want, change)
			if want.Parked > 0 {
				want.OldestParked = 10*time.Second + time.Since(want.CountedAt) // it goes on growing
			}
			want.Events.OldestCommittedAt = time.Time{}
			if want.KnowsWhatWaits() { // nobody has looked when the event was committed
				want.Events.OldestCommittedAt = want.CountedAt.Add(-10 * time.Second)
			}
			if diff := cmp.Diff(want, s.status()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
			component, shown := health.Report().Components["sink:s"]
			component.Since = time.Time{}
			if shown != want.InSession || shown && component != want.Component() {
				t.Errorf("%s: /readyz shows %v %+v", name, shown, component)
			}
			if n := strings.Count(log.String(), "\n"); !strings.Contains(log.String(), logged) || (logged == "") != (n == 0) || n > 1 {
				t.Errorf("%s: the log says %q, want %q", name, log.String(), logged)
			}
		}
		same := func(*monitoring.SinkStatus) {}
		want = well
		step("before the first session", func() { s.breakerIs(breakerClosed, time.Time{}) }, same, "")
		step("a session begins", func() { s.begin(2) }, func(w *monitoring.SinkStatus) {
			w.InSession, w.Lanes = true, []monitoring.LaneStatus{{CatchingUp: true}, {CatchingUp: true}}
		}, "")
		step("a lane is live", func() { s.laneIs(1, monitoring.LaneStatus{Held: 3}) }, func(w *monitoring.SinkStatus) {
			w.Lanes = []monitoring.LaneStatus{{CatchingUp: true}, {Held: 3}}
		}, "")
		step("the other too", func() { s.laneIs(0, monitoring.LaneStatus{Held: 1}) }, func(w *monitoring.SinkStatus) {
			w.Lanes = []monitoring.LaneStatus{{Held: 1}, {Held: 3}}
		}, "")
		step("all are accepted", func() { s.answered(answer{lane: 1, counts: delivered(5)}) }, func(w *monitoring.SinkStatus) {
			w.Counts.Delivered = 5
			w.Events.DeliveredAt, w.Lanes[1].DeliveredAt = began, began
		}, "")
		step("one is refused", func() {
			s.answered(answer{counts: monitoring.Counts{Delivered: 2, Failed: 1, Dead: 1}, cause: errors.New("500")})
		}, func(w *monitoring.SinkStatus) {
			w.Counts, w.Cause = monitoring.Counts{Delivered: 7, Failed: 1, Dead: 1}, "500"
			w.Lanes[0].DeliveredAt = began
		}, "")
		time.Sleep(30 * time.Second)
		step("away", func() { s.answered(answer{lane: 1, counts: monitoring.Counts{Failed: 3}, cause: away}) }, func(w *monitoring.SinkStatus) {
			w.Counts.Failed, w.Failing, w.FailingSince, w.Cause = 4, true, at(30), away.Error()
			w.Lanes[1].Failing, w.Lanes[1].RefusedAll = true, true
		}, "")
		step("the breaker opens", func() { s.breakerIs(breakerOpen, at(40)) }, func(w *monitoring.SinkStatus) {
			w.Breaker, w.BreakerSince, w.AsksAt = "open", at(30), at(40)
		}, "")
		time.Sleep(10 * time.Second)
		step("rows are counted", func() {
			s.countEnds(ledger.CountPoint{}, &ledger.ParkedCount{RowCounts: ledger.RowCounts{Parked: 3, Dead: 1}, Oldest: 10 * time.Second})
		}, func(w *monitoring.SinkStatus) {
			w.Parked, w.DeadLetters, w.OldestParked, w.CountedAt = 3, 1, 10*time.Second, at(40)
		}, "")
		step("a probe", func() { s.breakerIs(breakerHalfOpen, time.Time{}) }, func(w *monitoring.SinkStatus) {
			w.Breaker, w.AsksAt = "half-open", time.Time{}
		}, "")
		step("the probe fails: the outage began earlier", func() { s.breakerIs(breakerOpen, at(50)) }, func(w *monitoring.SinkStatus) {
			w.Breaker, w.AsksAt = "open", at(50)
		}, "")
		step("the session ends", func() { s.end(); health.SetOnly("session", monitoring.Failed("")) }, func(w *monitoring.SinkStatus) {
			w.InSession, w.Lanes = false, nil
		}, "")
		step("between sessions /readyz hears nothing", func() { s.breakerIs(breakerHalfOpen, time.Time{}) }, func(w *monitoring.SinkStatus) {
			w.Breaker, w.AsksAt = "half-open", time.Time{}
		}, "")
		step("the next session", func() { s.begin(1) }, func(w *monitoring.SinkStatus) {
			w.InSession, w.Lanes, w.Failing, w.FailingSince = true, []monitoring.LaneStatus{{CatchingUp: true}}, false, time.Time{}
		}, "")
		step("the breaker closes", func() { s.breakerIs(breakerClosed, time.Time{}) }, func(w *monitoring.SinkStatus) {
			w.Breaker, w.BreakerSince = "closed", time.Time{}
		}, "")
		step("a call that the session has ended", func() { s.answered(answer{counts: monitoring.Counts{Failed: 1}, cause: away, ended: true}) }, func(w *monitoring.SinkStatus) {
			w.Counts.Failed++
		}, "")
		step("paused", func() { s.isPaused(ledger.Paused) }, func(w *monitoring.SinkStatus) {
			w.Paused, w.Since.Paused = true, at(40)
		}, `msg="sink paused"`)
		step("paused still", func() { s.isPaused(ledger.Paused) }, same, "")
		step("resumed", func() { s.isPaused(ledger.Active) }, func(w *monitoring.SinkStatus) {
			w.Paused, w.Since.Paused = false, time.Time{}
		}, `msg="sink resumed"`)
		step("rows cannot be read", func() { s.read(errors.New("no answer")) }, func(w *monitoring.SinkStatus) { w.Unreadable = "no answer" }, "level=WARN")
		step("nor the second time", func() { s.read(errors.New("no answer again")) }, same, "")
		step("they can be read", func() { s.read(nil) }, func(w *monitoring.SinkStatus) { w.Unreadable = "" }, "")
		step("discarded unasked", func() { s.discarded() }, func(w *monitoring.SinkStatus) { w.Counts.Discarded = 1 }, "")
		step("suspect", func() { s.suspectIs(true) }, func(w *monitoring.SinkStatus) {
			w.SuspectSince = at(40)
		}, "")
		time.Sleep(time.Second)
		step("refused while suspect", func() { s.answered(answer{counts: monitoring.Counts{Failed: 1}, cause: errors.New("400")}) }, func(w *monitoring.SinkStatus) {
			w.Counts.Failed, w.Cause, w.Lanes[0].RefusedAll = w.Counts.Failed+1, "400", true
		}, "")
		step("suspect no more", func() { s.suspectIs(false) }, func(w *monitoring.SinkStatus) {
			w.SuspectSince = time.Time{}
		}, "")
	})
}

// A sink that is tried in place holds something back with each failure.
func TestSinkStateInPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSinkState(observedSink{name: "s", inPlace: true, health: &monitoring.Health{}, logger: slog.New(slog.DiscardHandler)})
		s.begin(2)
		fails := answer{counts: monitoring.Counts{Delivered: 1, Failed: 1}, cause: errors.New("500")}
		other := fails
		other.lane = 1
		for range 3 {
			s.answered(fails)
			s.answered(other)
			time.Sleep(time.Minute)
		}
		works := answer{counts: monitoring.Counts{Delivered: 1}}
		s.answered(works)
		if st := s.status(); !st.Failing || st.Component().Status != monitoring.LevelDegraded {
			t.Errorf("one of two lanes waits, and it says %+v", st)
		}
		works.lane = 1
		s.answered(works)
		if st := s.status(); st.Failing || st.Component().Status != monitoring.LevelOK {
			t.Errorf("no lane waits, and it says %+v", st)
		}
	})
}

// Whoever asks while the lanes run gets numbers that belong together: each answer brings as many failures as acceptances, and
// the component of /readyz is never older than the last change.
func TestSinkStateConcurrently(t *testing.T) {
	t.Parallel()
	var health monitoring.Health
	s := newSinkState(observedSink{name: "s", health: &health, logger: slog.New(slog.DiscardHandler)})
	s.begin(4)
	var running sync.WaitGroup
	for lane := range 4 {
		running.Go(func() {
			for i := range 500 {
				s.answered(answer{lane: lane, counts: monitoring.Counts{Delivered: 1, Failed: 1}, cause: errors.New("500")})
				s.laneIs(lane, monitoring.LaneStatus{Held: i})
				s.suspectIs(suspicion(i%2 == 0))
				s.breakerIs(breakerState(i%3), time.Time{})
				s.read(nil)
				s.countEnds(ledger.CountPoint{}, &ledger.ParkedCount{RowCounts: ledger.RowCounts{Parked: int64(i), Dead: int64(i)}})
			}
		})
	}
	done := make(chan struct{})
	go func() { running.Wait(); close(done) }()
	for asking := true; asking; {
		select {
		case <-done:
			asking = false
		default:
		}
		if st := s.status(); st.Counts.Delivered != st.Counts.Failed || st.Parked != st.DeadLetters {
			t.Fatalf("numbers of different moments: %+v", st)
		}
	}
	got := health.Report().Components["sink:s"]
	got.Since = time.Time{}
	if want := s.status().Component(); got != want {
		t.Errorf("/readyz shows %+v, want %+v", got, want)
	}
}

// What a Deliver costs here is one mutex, and no memory.
func BenchmarkSinkStateAnswered(b *testing.B) {
	s := newSinkState(observedSink{name: "s", health: &monitoring.Health{}, logger: slog.New(slog.DiscardHandler)})
	s.begin(1)
	b.ReportAllocs()
	for b.Loop() {
		s.answered(answer{counts: monitoring.Counts{Delivered: 100}})
	}
}
