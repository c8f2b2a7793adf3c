package connector

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// steadyStream sends a transaction of ten events, and a row of another table, every ten milliseconds, or later if nobody reads.
type steadyStream struct {
	progress replication.Progress
	sends    time.Duration // how long a status message takes
	n        int           // transactions sent
	frames   []replication.Frame
	waited   time.Duration
	status   time.Time // when the last status message was sent
}

func (s *steadyStream) Buffered() bool { return len(s.frames) > 0 }

func (s *steadyStream) Next(ctx context.Context) (replication.Frame, error) {
	if len(s.frames) == 0 {
		if err := s.Report(); err != nil {
			return replication.Frame{}, err
		}
		began := time.Now()
		if !slept(ctx, 10*time.Millisecond) {
			return replication.Frame{}, context.Cause(ctx)
		}
		s.waited += time.Since(began)
		s.transaction()
	}
	f := s.frames[0]
	s.frames = s.frames[1:]
	return f, nil
}

func (s *steadyStream) transaction() {
	add := func(b []byte) { s.frames = append(s.frames, replication.Frame{Data: b}) }
	if s.n == 0 {
		add(worldRelation())
	}
	s.n++
	commit, micros := uint64(1000*s.n), uint64(time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds())
	add(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'B'}, commit), micros), 1))
	foreign := binary.BigEndian.AppendUint32(nil, uint32(100_000+s.n))
	add(append(append([]byte{'R'}, foreign...), "shop\x00orders\x00d\x00\x00"...))
	add(append(append([]byte{'I'}, foreign...), 'N', 0, 0))
	for i := range 10 {
		add(worldInsert(&worldEvent{id: fmt.Sprint(s.n, "-", i), aggregate: fmt.Sprint(i), sinks: []int{0}}))
	}
	end := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'C', 0}, commit), commit+30)
	add(binary.BigEndian.AppendUint64(end, micros))
}

func (s *steadyStream) Report() error {
	if time.Since(s.status) < 20*time.Millisecond || s.progress == nil {
		return nil
	}
	began, lsn := time.Now(), s.progress.Confirmed()
	time.Sleep(s.sends)
	s.status = time.Now()
	s.waited += s.status.Sub(began)
	s.progress.Reported(lsn, began, s.status)
	return nil
}

func (s *steadyStream) More(context.Context) ([]byte, error) { panic("no row is large") }
func (s *steadyStream) Wait() time.Duration                  { return 20 * time.Millisecond }
func (s *steadyStream) Waited() time.Duration                { return s.waited }
func (s *steadyStream) Track(p replication.Progress)         { s.progress = p }
func (s *steadyStream) Fast() bool                           { return false }
func (s *steadyStream) AskKeepalive()                        {}
func (s *steadyStream) Broken() bool                         { return false }
func (s *steadyStream) Close()                               {}

// slowLedger is a ledger whose Commit takes this long, and fails as often as the test says.
type slowLedger struct {
	*memLedger
	takes time.Duration
	fails func() error
}

func (l *slowLedger) Commit(ctx context.Context, b checkpoint.Batch) error {
	if !slept(ctx, l.takes) {
		return context.Cause(ctx)
	}
	if err := l.fails(); err != nil {
		return err
	}
	for _, o := range b.Outcomes {
		l.apply(o.Rows)
	}
	return nil
}

func (*slowLedger) Close() {}

// slowness says how long the work of each stage takes.
type slowness struct {
	decode, deliver, commit, status time.Duration
	record                          func() error // why a Commit fails; nil: none does
}

// stageBench is a session of one sink with two lanes over a steadyStream.
type stageBench struct {
	*session
	metrics *prometheus.Registry
	stop    func()
}

func newStageBench(t *testing.T, slow slowness) *stageBench {
	b := &stageBench{metrics: prometheus.NewRegistry()}
	metrics := monitoring.NewMetrics("", b.metrics)
	sink := fakeSink(func(ctx context.Context, batch []sinks.Message) []error {
		if !slept(ctx, slow.deliver) {
			return fail(batch, map[string]error{batch[0].Event.ID: sinks.ErrUnavailable})
		}
		return nil
	})
	c := New(Config{
		Sinks: []Sink{{Name: "s"}}, Source: Source{Columns: worldColumns}, Metrics: metrics, Health: &monitoring.Health{}, Logger: slog.New(slog.DiscardHandler),
		Delivery: DeliveryConfig{
			BatchSize: 10, Lanes: 2, Timeout: time.Hour, Retry: Retry{Initial: time.Second, Max: time.Minute}, MaxInFlight: 200, MaxInFlightBytes: 1 << 30,
			MaxEventBytes: 1 << 20,
		},
	})
	s := &session{c: c, stream: &steadyStream{sends: slow.status}, tracker: checkpoint.NewTracker(200, 1<<30, checkpoint.Position{}, 0)}
	b.session = s
	c.tracker.Store(s.tracker)
	s.confirm = c.newConfirmClock(0)
	s.confirm.Tracker = s.tracker
	s.stream.Track(s.confirm)
	s.outcomes = make(chan checkpoint.Outcomes, 100)
	table := &slowLedger{&memLedger{}, slow.commit, slow.record}
	if table.fails == nil {
		table.fails = func() error { return nil }
	}
	s.recorder = checkpoint.NewRecorder(watchedLedger{table, &c.calls.record, c.newRecordClock(s.confirm)}, c.recorderConfig(s.stream.Fast))
	lasting := c.sinks["s"]
	lasting.state.begin(2)
	shared := &sharedSink{
		sink: sink, name: "s", id: 1, policy: retryInPlace, delivery: c.cfg.Delivery, breaker: lasting.breaker, budget: lasting.budget,
		lease: lastingLease(), paused: &lasting.paused, state: lasting.state, objective: lasting.objective, measures: newLaneMeasures(metrics, "s"), fast: s.stream.Fast, logger: c.cfg.Logger,
	}
	for i := range 2 {
		s.lanes = append(s.lanes, newLane(shared, i, rowSource{parked: table.table(1, i, 2), address: ofTestEvent}, s.outcomes))
	}
	s.bySink = map[int32][]*lane{1: s.lanes}
	own := router.Sink{Processor: 1, Topic: worldTemplate("{event_type}"), Key: worldTemplate("{aggregate_id}")}
	s.reader = s.newReader(ledger.Start{}, 0, worldOID, []router.Route{{Sinks: []router.Sink{own}}})
	s.reader.checkDrift = func(ctx context.Context) error {
		time.Sleep(slow.decode)
		return nil
	}
	b.run(t)
	return b
}

// run starts the session; stop ends it.
func (b *stageBench) run(t *testing.T) {
	reading, endReading := context.WithCancel(t.Context())
	work, endWork := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, l := range b.lanes {
		running.Go(func() { _ = l.run(work, work) })
	}
	running.Go(func() { _ = b.recorder.Run(work, b.tracker, b.outcomes) })
	running.Go(func() { _ = b.reader.read(reading) })
	b.stop = func() {
		endReading()
		endWork()
		running.Wait()
	}
}

// shares are the busy shares of the stages since before.
func (b *stageBench) shares(before monitoring.Stages, passed time.Duration) map[string]float64 {
	shares := map[string]float64{}
	for i, now := range b.c.Status().Stages.Busy {
		shares[now.Stage] = (now.Busy - before.Busy[i].Busy).Seconds() / passed.Seconds()
	}
	return shares
}

// histogram returns the number of values, and their average, of a histogram with this label, or with none.
func histogram(t *testing.T, reg *prometheus.Registry, name, label string) (count uint64, average time.Duration) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Error(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if has := func(l *dto.LabelPair) bool { return l.GetValue() == label }; label != "" && !has(m.GetLabel()[0]) {
				continue
			}
			h := m.GetHistogram()
			return h.GetSampleCount(), time.Duration(h.GetSampleSum() / max(1, float64(h.GetSampleCount())) * float64(time.Second))
		}
	}
	t.Errorf("no %s of %s", name, label)
	return 0, 0
}

// The stage that holds up the others is busy nearly all the time, and no other one is. Durations and waits say the same.
func TestStagesShowTheBottleneck(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, busy string
		slow       slowness
		took       time.Duration // of the stage
		waits      string        // what the reader waits for, by what the bottleneck is
	}{
		{name: "nobody"},
		{"decode", monitoring.StageDecode, slowness{decode: 500 * time.Millisecond}, 500 * time.Millisecond, ""},
		{"sink", monitoring.StageDeliver, slowness{deliver: 300 * time.Millisecond}, 300 * time.Millisecond, "lanes window"},
		{"ledger", monitoring.StageRecord, slowness{commit: 2 * time.Second}, 2 * time.Second, "window"},
		{"status", monitoring.StageConfirm, slowness{status: 2 * time.Second}, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newStageBench(t, test.slow)
				defer b.stop()
				time.Sleep(20 * time.Second)
				before := b.c.Status().Stages
				time.Sleep(time.Minute)
				shares := b.shares(before, time.Minute)
				if len(shares) != 5 {
					t.Errorf("%v, want all stages", shares)
				}
				for stage, share := range shares {
					if stage == test.busy && share < 0.95 || stage != test.busy && share > 0.4 || share > 1.0001 || share < 0 {
						t.Errorf("%s has a share of %.3f", stage, share)
					}
				}
				if b.c.Status().Stages.Read <= before.Read {
					t.Errorf("%d rows were read in all, %d a minute before", b.c.Status().Stages.Read, before.Read)
				}
				w, was := b.c.Status().Stages.ReaderWaited, before.ReaderWaited
				waited := (w.Lanes + w.Window + w.Recorder - was.Lanes - was.Window - was.Recorder).Seconds() / 60
				if (waited > 0.9) != (test.waits != "") || waited > 1 {
					t.Errorf("the reader has waited for %.3f of the time: %+v", waited, w)
				}
				for what, d := range map[string]time.Duration{"lanes": w.Lanes - was.Lanes, "window": w.Window - was.Window, "recorder": w.Recorder - was.Recorder} {
					if d > time.Second && !strings.Contains(test.waits, what) {
						t.Errorf("the reader has waited for %s for %s", what, d)
					}
				}
				if test.took == 0 {
					return
				}
				if n, average := histogram(t, b.metrics, "stage_duration_seconds", test.busy); n == 0 || average < test.took*99/100 || average > test.took*11/10 {
					t.Errorf("%d times of %s, want %s", n, average, test.took)
				}
			})
		})
	}
}

// What every event passes is measured: how long it waits for its batch, how many make a batch, and when PostgreSQL hears of it.
func TestStageDurations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStageBench(t, slowness{deliver: 100 * time.Millisecond, commit: 5 * time.Millisecond})
		time.Sleep(time.Minute)
		b.stop()
		between := func(what string, n uint64, got, least, most time.Duration) {
			t.Helper()
			if n < 100 || got < least || got > most {
				t.Errorf("%s: %d values of %s, want %s to %s", what, n, got, least, most)
			}
		}
		n, d := histogram(t, b.metrics, "deliver_duration_seconds", "s")
		between("deliver", n, d, 99*time.Millisecond, 101*time.Millisecond)
		n, d = histogram(t, b.metrics, "batch_events", "s")
		between("events of a batch, as seconds", n, d, 8*time.Second, 10*time.Second)
		n, d = histogram(t, b.metrics, "recorder_commit_seconds", "")
		between("commit", n, d, 5*time.Millisecond-1, 5*time.Millisecond+1)
		n, d = histogram(t, b.metrics, "stage_duration_seconds", monitoring.StageConfirm)
		between("confirm", n, d, time.Millisecond, 25*time.Millisecond)
		// 200 events are in the window, which two lanes deliver by tens.
		n, d = histogram(t, b.metrics, "stage_duration_seconds", monitoring.StageQueue)
		between("queue", n, d, 300*time.Millisecond, 1000*time.Millisecond)
	})
}

// A call that hangs shows while it hangs, and a counter never goes back.
func TestBusyWhileItHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStageBench(t, slowness{deliver: 10 * time.Hour, commit: 10 * time.Hour})
		defer b.stop()
		time.Sleep(10 * time.Second)
		last := b.c.Status().Stages
		for range 100 {
			time.Sleep(15 * time.Second)
			shares := b.shares(last, 15*time.Second)
			if s := shares[monitoring.StageDeliver]; s < 0.999 || s > 1.001 {
				t.Fatalf("the sink hangs, and has a share of %.3f", s)
			}
			last = b.c.Status().Stages
		}
	})
}

// The recorder counts as busy while it tries again, and each further try is counted.
func TestRecorderRetriesAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		b := newStageBench(t, slowness{commit: time.Millisecond, record: func() error {
			if tries++; tries > 100 && tries <= 105 {
				return fmt.Errorf("no space left, try %d", tries)
			}
			return nil
		}})
		defer b.stop()
		time.Sleep(time.Minute)
		if n := b.c.Status().Stages.RecorderRetries; n != 5 {
			t.Errorf("%d retries, want 5", n)
		}
		busy := time.Duration(0)
		for _, s := range b.c.Status().Stages.Busy {
			if s.Stage == monitoring.StageRecord {
				busy = s.Busy
			}
		}
		// 50, 100, 200, 400 and 800 ms lie between the tries; the transactions take a millisecond each.
		if least := 1550 * time.Millisecond; busy < least || busy > least+10*time.Second {
			t.Errorf("the recorder was busy for %s", busy)
		}
		if n, average := histogram(t, b.metrics, "recorder_commit_seconds", ""); n == 0 || average > 2*time.Millisecond {
			t.Errorf("%d transactions of %s", n, average)
		}
	})
}

// A meter counts each of its workers, also with times that come in another order than its calls, and never goes back.
func TestMeter(t *testing.T) {
	t.Parallel()
	base := time.Now()
	at := func(seconds int) time.Time { return base.Add(time.Duration(seconds) * time.Second) }
	var m meter
	step := func(now, want int) {
		t.Helper()
		if got := m.total(at(now)); got != time.Duration(want)*time.Second {
			t.Errorf("after %d s: %s, want %d s", now, got, want)
		}
	}
	step(5, 0)
	m.begin(at(10))
	step(15, 5)
	m.begin(at(20))
	step(30, 30)
	m.end(at(25)) // its end came late: 5 s are shown that it was not at work
	step(30, 30)
	step(34, 30)
	step(40, 35)
	m.end(at(40))
	step(100, 35)
	m.begin(at(100))
	step(99, 35)
	step(101, 36)
}

func TestQueueTimes(t *testing.T) {
	t.Parallel()
	base := time.Now()
	at := func(seconds int) time.Time { return base.Add(time.Duration(seconds) * time.Second) }
	var q queueTimes
	left := func(n, want int) {
		t.Helper()
		if got := q.left(n); !got.Equal(at(want)) {
			t.Errorf("%d: %s, want %s", n, got.Sub(base), at(want).Sub(base))
		}
	}
	q.came(3, at(1))
	q.came(2, at(2))
	left(1, 1)
	left(2, 1)
	left(1, 2)
	q.came(5, at(3))
	left(3, 2)
	left(3, 3)
	for i := range 1000 {
		q.came(2, at(i))
		q.came(2, at(i+1))
		left(4, i)
	}
	if n := cap(q.marks); n > 16 {
		t.Errorf("room for %d", n)
	}
}

// What is committed while a status message is on its way waits for the next one.
func TestConfirmClock(t *testing.T) {
	t.Parallel()
	base := time.Now()
	at := func(seconds int) time.Time { return base.Add(time.Duration(seconds) * time.Second) }
	c := confirmClock{last: committedAt{lsn: 50}}
	told := func(lsn pglogrepl.LSN, now, want int) {
		t.Helper()
		waited, told := c.told(lsn, at(now))
		if told != (want >= 0) || told && waited != time.Duration(want)*time.Second {
			t.Errorf("%d at %d s: %s %t, want %d", lsn, now, waited, told, want)
		}
	}
	told(50, 0, -1)
	c.committed(50, at(1)) // outcomes alone
	told(50, 2, -1)
	c.committed(60, at(3))
	c.committed(70, at(4))
	told(50, 5, -1)
	told(70, 6, 3)
	told(70, 7, -1)
	c.committed(80, at(8))
	c.committed(90, at(9))
	told(80, 10, 2)
	told(90, 11, 2)
}

// A sink without lanes has no work, and Status can be asked for it.
func TestWorkWithoutLanes(t *testing.T) {
	t.Parallel()
	var w sinkWork
	for _, b := range w.status(time.Now(), "a", 0) {
		if b.Busy != 0 {
			t.Errorf("%+v", b)
		}
	}
}
