package connector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// storyBench has a sink's state, and the log that tells of it.
type storyBench struct {
	*sinkState
	t       *testing.T
	log     *lockedLog
	outages *outageLog
	stop    func() // ends the outage log, and waits until it has ended
}

// lockedLog is a log that can be read while somebody writes.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written since the last call of take.
func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// take returns the lines since the last call.
func (l *lockedLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimSuffix(l.b.String(), "\n")
	l.b.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// newStoryBench makes a sink with two live lanes in a session, inside a synctest bubble.
func newStoryBench(t *testing.T) *storyBench {
	b := &storyBench{t: t, log: &lockedLog{}}
	logger := slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	wake := make(chan struct{}, 1)
	b.sinkState = newSinkState(observedSink{name: "s", kind: "kafka", health: &monitoring.Health{}, logger: logger, wake: bells{wake}})
	b.outages = &outageLog{logger: logger, wake: wake, noSink: &deathLog{wake: bells{wake}}, sinks: []*sinkStory{newSinkStory(b.sinkState)}}
	b.session()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { b.outages.run(ctx) })
	b.stop = func() { cancel(); running.Wait() }
	t.Cleanup(b.stop)
	return b
}

// counted notes what a count has found.
func (b *storyBench) counted(count ledger.ParkedCount) { b.countEnds(ledger.CountPoint{}, &count) }

// session begins a session, and its lanes have caught up.
func (b *storyBench) session() {
	b.begin(2)
	b.laneIs(0, monitoring.LaneStatus{})
	b.laneIs(1, monitoring.LaneStatus{})
}

var errAway = fmt.Errorf("dial tcp 127.0.0.1:9092: connection refused: %w", sinks.ErrUnavailable)

// fails makes the sink's destination be away, with an open breaker.
func (b *storyBench) fails() {
	b.answered(answer{counts: monitoring.Counts{Failed: 3}, cause: errAway})
	b.breakerIs(breakerOpen, time.Now().Add(30*time.Second))
}

// mends makes it answer the probe, and deliver n rows that were parked.
func (b *storyBench) mends(n int64) {
	b.answered(answer{counts: monitoring.Counts{Delivered: n, Unparked: n}})
	b.breakerIs(breakerClosed, time.Time{})
}

// want compares the lines since the last call with the wanted ones, of which each begins with a part of the line. Parts in a line are
// separated by "|".
func (b *storyBench) want(lines ...string) {
	b.t.Helper()
	synctest.Wait()
	got := b.log.take()
	if len(got) != len(lines) {
		b.t.Fatalf("the log has %d lines, want %d:\n%s", len(got), len(lines), strings.Join(got, "\n"))
	}
	for i, line := range lines {
		for part := range strings.SplitSeq(line, "|") {
			if !strings.Contains(got[i], part) {
				b.t.Errorf("line %d is\n%s\nand lacks %q", i, got[i], part)
			}
		}
	}
}

// An outage has one line when it begins, one a minute while it lasts, and one when what was parked is delivered.
func TestOutageLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		time.Sleep(time.Hour)
		b.want()
		began := time.Now()
		b.fails()
		time.Sleep(time.Second)
		b.want(`level=WARN msg="sink does not accept" sink=s|since=` + stamp(began) + `|asks_at=` + stamp(began.Add(30*time.Second)) + `|connection refused`)
		for minute := range 3 {
			time.Sleep(30 * time.Second)
			b.breakerIs(breakerHalfOpen, time.Time{})
			b.breakerIs(breakerOpen, time.Now().Add(45*time.Second))
			b.counted(ledger.ParkedCount{RowCounts: ledger.RowCounts{Parked: int64(minute) + 7}, Oldest: 40 * time.Second})
			b.want()
			time.Sleep(30 * time.Second)
			b.want(fmt.Sprintf(`level=WARN msg="sink still does not accept"|condition=away|since=%s|parked=%d|oldest=1m|asks_at=|connection refused`, stamp(began), minute+7))
		}
		time.Sleep(19 * time.Second)
		b.laneIs(0, monitoring.LaneStatus{CatchingUp: true})
		b.mends(9)
		time.Sleep(2 * time.Second)
		b.want() // it still catches up
		b.laneIs(0, monitoring.LaneStatus{})
		b.counted(ledger.ParkedCount{})
		time.Sleep(2 * time.Second)
		b.want(`level=INFO msg="sink accepts again" sink=s outage=3m20s|delivered=9 parked=0`)
		time.Sleep(time.Hour)
		b.want()
	})
}

// What was parked in a long outage takes long to deliver. The log says at once that the sink accepts again, and later that it has caught up.
func TestOutageLogTellsOfALongCatchUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		b.fails()
		time.Sleep(10 * time.Second)
		b.want("sink does not accept")
		b.laneIs(1, monitoring.LaneStatus{CatchingUp: true})
		b.mends(100)
		time.Sleep(7 * time.Second)
		b.counted(ledger.ParkedCount{RowCounts: ledger.RowCounts{Parked: 5000}})
		b.want(`level=INFO msg="sink accepts again, and catches up"|outage=10s|delivered=100`)
		time.Sleep(time.Minute)
		b.want(`level=INFO msg="sink catches up"|parked=5000`)
		b.answered(answer{counts: monitoring.Counts{Delivered: 4998, Unparked: 4998}})
		b.laneIs(1, monitoring.LaneStatus{})
		b.counted(ledger.ParkedCount{RowCounts: ledger.RowCounts{Parked: 2}})
		time.Sleep(2 * time.Second)
		b.want(`level=INFO msg="sink has caught up"|outage=10s|caught_up_in=1m7s|delivered=5098|parked=2`)
	})
}

// A sink that comes and goes has a few lines a minute, and each is true.
func TestOutageLogOfASinkThatFlaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		const minutes = 10
		for range minutes * 60 / 6 {
			b.fails()
			time.Sleep(3 * time.Second)
			b.mends(1)
			time.Sleep(3 * time.Second)
			b.counted(ledger.ParkedCount{})
		}
		synctest.Wait()
		lines := b.log.take()
		if len(lines) < minutes || len(lines) > 5*minutes {
			t.Errorf("%d lines in %d minutes:\n%s", len(lines), minutes, strings.Join(lines, "\n"))
		}
		if !strings.Contains(strings.Join(lines, "\n"), "came_again=") {
			t.Errorf("no line says that it flaps:\n%s", strings.Join(lines, "\n"))
		}
		time.Sleep(2 * time.Minute)
		lines = append(lines, b.log.take()...)
		if last := lines[len(lines)-1]; !strings.Contains(last, "accepts again") && !strings.Contains(last, "caught up") {
			t.Errorf("the sink accepts, and the log ends with\n%s", last)
		}
	})
}

// Many poisoned events among good ones use the death budget up again and again. That is one line a minute.
func TestOutageLogOfSuspicions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		for range 598 {
			b.suspectIs(true)
			time.Sleep(700 * time.Millisecond)
			b.suspectIs(false)
			time.Sleep(300 * time.Millisecond)
		}
		synctest.Wait()
		lines := b.log.take()
		if len(lines) != 10 || !strings.Contains(lines[1], "came_again=") {
			t.Errorf("%d lines in 10 minutes:\n%s", len(lines), strings.Join(lines, "\n"))
		}
		time.Sleep(time.Minute + 2*time.Second)
		b.want("level=INFO|sink is no longer suspect|lasted=750ms")
		time.Sleep(time.Minute)
		b.answered(answer{counts: monitoring.Counts{Dead: 5}, cause: errors.New("400")})
		b.suspectIs(true)
		time.Sleep(2*time.Minute + 5*time.Second)
		b.want("level=WARN|sink is suspect|err=400", "level=WARN|sink is still suspect|err=400", "sink is still suspect")
		b.suspectIs(false)
		time.Sleep(100 * time.Millisecond)
		b.want("level=INFO|sink is no longer suspect|lasted=2m5s") // at once: the suspicion was no flicker
	})
}

// A person has to make a topic that is missing. The log tells of it when it begins, once a minute, and when it ends: not at each event.
func TestOutageLogOfTopics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		missing := fmt.Errorf(`%w: topic "orders" does not exist`, sinks.ErrTopicUnavailable)
		try := func() {
			b.topicIsAway("orders", missing)
			b.topicIsAway("bills", missing)
			b.answered(answer{lane: 1, counts: monitoring.Counts{Delivered: 1, Failed: 2}, cause: missing})
			time.Sleep(time.Second)
		}
		try()
		b.want(`level=WARN msg="a topic of the sink is away; its events are parked and tried again, and others go on"|orders`)
		for range 64 {
			try()
		}
		b.want(`level=WARN msg="a topic of the sink is still away"|topics=2|orders`)
		if st := b.status(); st.Topics.Count != 2 || st.Component().Status != monitoring.LevelOK {
			t.Errorf("%+v, %+v", st.Topics, st.Component())
		}
		b.topicAccepts("orders")
		time.Sleep(time.Minute)
		b.want(`level=WARN msg="a topic of the sink is still away"|topics=1`)
		b.topicAccepts("bills")
		time.Sleep(time.Second)
		b.want(`level=INFO msg="no topic of the sink is away any more"|lasted=2m5s`)
		// Somebody kills the events of a topic: nobody will ever find out whether it is there.
		try()
		b.want("level=WARN")
		time.Sleep(forgetTopic + 2*time.Second)
		b.want("level=WARN", "level=INFO")
	})
}

// A sink that is paused, or in no session, is asked by nobody: the log says nothing of it. A session that begins knows nothing of the sink
// yet, and does not say that it accepts again.
func TestOutageLogSaysNothingThatIsNotKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		b.answered(answer{counts: monitoring.Counts{Failed: 3}, cause: errAway})
		time.Sleep(time.Second)
		synctest.Wait()
		if line := b.log.b.String(); strings.Contains(line, "parked=") {
			t.Errorf("nobody has counted what is parked: %s", line)
		}
		b.want("sink does not accept|condition=failing")
		b.end()
		time.Sleep(10 * time.Minute)
		b.want()
		b.session()
		time.Sleep(10 * time.Second)
		b.want()
		b.answered(answer{counts: monitoring.Counts{Failed: 3}, cause: errAway})
		time.Sleep(time.Second)
		b.want("sink still does not accept")
		b.isPaused(ledger.Paused)
		b.want("sink paused")
		time.Sleep(10 * time.Minute)
		b.want()
		b.isPaused(ledger.Active)
		b.answered(answer{counts: monitoring.Counts{Delivered: 1}})
		time.Sleep(3 * time.Second)
		b.want("sink resumed", "sink accepts again")
	})
}

// The log of a connector that follows another one goes on with the outages of which that has told: another begin would be wrong, and
// without a line about the end they would seem to last for ever.
func TestOutageLogGoesOnAfterAReload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &lockedLog{}
		follow := func(before map[string]time.Time) (*storyBench, *Connector) {
			c := newConnector(Config{
				Sinks: []Sink{{Name: "s"}, {Name: "other"}}, Health: &monitoring.Health{}, Predecessor: Predecessor{Outages: before},
				Logger: slog.New(slog.NewTextHandler(log, nil)),
			}, nil)
			b := &storyBench{t: t, log: log, sinkState: c.sinks["s"].state, outages: c.outages}
			b.session()
			return b, c
		}
		began := time.Now()
		b, c := follow(nil)
		tell := func() { b.outages.tell(time.Now()) }
		tell()
		if got := c.Outages(); len(got) != 0 {
			t.Errorf("outages: %v", got)
		}
		b.fails()
		tell()
		b.want("sink does not accept")

		time.Sleep(10 * time.Second)
		_, unused := follow(c.Outages()) // it ends before its first session
		b, c = follow(unused.Outages())
		tell()
		b.answered(answer{counts: monitoring.Counts{Failed: 3}, cause: errAway})
		tell()
		b.want()
		time.Sleep(time.Minute)
		tell()
		b.want("sink still does not accept|since=" + stamp(began))
		b.answered(answer{counts: monitoring.Counts{Delivered: 1}})
		tell()

		b, c = follow(c.Outages()) // before the line about the end
		tell()
		time.Sleep(time.Second)
		tell()
		b.want()
		b.answered(answer{counts: monitoring.Counts{Delivered: 1}})
		tell()
		time.Sleep(time.Second)
		tell()
		b.want("sink accepts again|outage=1m11s")
		if got := c.Outages(); len(got) != 0 {
			t.Errorf("outages: %v", got)
		}
	})
}

// Twenty dead letters a minute have a line each. The others are counted, and the log has the first cause.
func TestDeathLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		die := func(n int) {
			for i := range n {
				b.died(deadLetter{eventID: fmt.Sprint("id", i), eventType: "order.placed", aggregateType: "order", attempt: 2, cause: fmt.Errorf("refused %d", i)})
				b.outages.noSink.add(deadLetter{}, time.Now())
			}
			synctest.Wait()
		}
		die(100)
		lines := b.log.take()
		if len(lines) != deathLines {
			t.Fatalf("%d lines:\n%s", len(lines), strings.Join(lines, "\n"))
		}
		want := `level=ERROR msg="dead letter" sink=s attempt=2 event_id=id0 event_type=order.placed aggregate_type=order err="refused 0"`
		if lines[0] != want {
			t.Errorf("the first line is\n%s\nwant\n%s", lines[0], want)
		}
		time.Sleep(deathSpan + 2*time.Second)
		b.want(`level=ERROR msg="more dead letters" sink=s events=80 event_id=id20 event_type=order.placed|refused 20`, `msg="more dead letters" events=80`)
		die(1) // within the minute of the sum
		b.want("dead letter")
		time.Sleep(2 * deathSpan)
		die(1)
		b.want("dead letter")
	})
}

// What was only counted when the process ends is in its log.
func TestDeathLogAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		for range deathLines + 3 {
			b.died(deadLetter{cause: errors.New("400")})
		}
		b.log.take()
		b.stop()
		b.want(`msg="more dead letters"|events=3`)
	})
}

// A sink that no check can reach has a line a minute, until a message was tried: then its outage has.
func TestOutageLogOfChecks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		b.mu.Lock()
		b.unreachable(checkResult{began: time.Now(), err: errAway})
		b.show()
		b.mu.Unlock()
		time.Sleep(2*time.Minute + 5*time.Second)
		b.want(`level=WARN msg="sink is still not reachable" sink=s since=2000-01-01T00:00:00Z|refused`, "sink is still not reachable")
		b.fails()
		time.Sleep(time.Minute + 5*time.Second)
		b.want("sink does not accept", "sink still does not accept")
	})
}
