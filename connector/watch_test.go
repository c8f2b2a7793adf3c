package connector

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// stuckLedger lets each Commit hang until the test sends its result into gate.
type stuckLedger struct{ gate chan error }

func (l stuckLedger) Commit(context.Context, checkpoint.Batch) error { return <-l.gate }
func (stuckLedger) Close()                                           {}

func newWatchedConnector() (*Connector, *bytes.Buffer) {
	var log bytes.Buffer
	return New(Config{Health: &monitoring.Health{}, Metrics: monitoring.NewMetrics("", nil), Logger: slog.New(slog.NewTextHandler(&log, nil))}), &log
}

// While a Commit hangs, the lag goes on growing. /readyz says after five seconds what hangs and for what the server waits, and follows when that
// changes. After ten seconds the process counts as failed. The log has one line when it hangs and one when it is over.
func TestWhatHangsIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, log := newWatchedConnector()
		gate := make(chan error)
		ledger := watchedLedger{stuckLedger{gate}, &c.calls.record, c.newRecordClock(c.newConfirmClock(0))}
		c.tracker.Store(checkpoint.NewTracker(10, 1<<20, checkpoint.Position{}, 0))
		c.tracker.Load().Add(checkpoint.Position{LSN: 1}, 1, 1, time.Now())
		var h hangReport
		says := "SyncRep"
		asked := 0
		second := func() {
			time.Sleep(time.Second)
			c.showHang(t.Context(), &h, func(context.Context) string { asked++; return says })
		}
		c.cfg.Health.Set("session", monitoring.OK("streaming"))
		is := func(want monitoring.Level, tells string) {
			t.Helper()
			r := c.cfg.Health.Report()
			if p := r.Components["postgres"]; r.Status != want || !strings.Contains(p.Detail, tells) {
				t.Errorf("%s %+v, want %s and %q", r.Status, p, want, tells)
			}
		}

		go func() { _ = ledger.Commit(t.Context(), checkpoint.Batch{}) }() // it hangs
		for range 4 {
			second()
		}
		is(monitoring.LevelOK, "") // after four seconds
		second()
		is(monitoring.LevelDegraded, "records outcomes has waited for PostgreSQL for 5s: SyncRep")
		for range 4 {
			second()
		}
		is(monitoring.LevelDegraded, "for 9s: SyncRep")
		says = "a lock"
		second()
		is(monitoring.LevelFailed, "for 10s: a lock")
		for range 50 {
			second()
		}
		is(monitoring.LevelFailed, "for 1m0s: a lock")
		if asked != 12 {
			t.Errorf("asked the server %d times in a minute, want every five seconds", asked)
		}
		if lag := c.Status().Lag; lag != time.Minute {
			t.Errorf("a lag of %s, want a minute", lag)
		}
		gate <- nil
		second()
		is(monitoring.LevelOK, "")
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "level=INFO") {
			t.Errorf("%d lines, want a WARN and an INFO:\n%s", n, log)
		}

		// Hanging again and again, at once, fills no log.
		for range 5 {
			go func() { _ = ledger.Commit(t.Context(), checkpoint.Batch{}) }() // it hangs
			for range 8 {
				second()
			}
			is(monitoring.LevelDegraded, "for 8s")
			gate <- nil
			second()
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines, want 2:\n%s", n, log)
		}
	})
}

// Once the stream has ended with the same error at the same place again and again, a session that streams up to it does not count as working,
// and the lag does not begin anew, until a session is past it.
func TestSessionThatWillEndAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := newWatchedConnector()
		tracker := checkpoint.NewTracker(10, 1<<20, checkpoint.Position{}, 0x1000)
		c.tracker.Store(tracker)
		s := &session{c: c, reader: &reader{}}
		is := func(want monitoring.Level, lag time.Duration) {
			t.Helper()
			c.showPassed()
			if r := c.cfg.Health.Report(); r.Status != want || c.Status().Lag != lag {
				t.Errorf("%+v and a lag of %s, want %s and %s", r, c.Status().Lag, want, lag)
			}
		}
		ends := func() {
			err := c.explainStreamError(t.Context(), &decoder.Error{LSN: 0x2000, Kind: 'R', Err: errors.New("drifted")})
			c.sessionEnded(err)
			c.cfg.Health.SetOnly("session", monitoring.Failed(err.Error()))
			time.Sleep(time.Second)
		}
		for range sameOften - 1 {
			s.announce()
			is(monitoring.LevelOK, 0)
			ends()
		}
		s.announce()
		ends() // once more than a coincidence
		for i := range 3 {
			s.announce()
			is(monitoring.LevelFailed, time.Duration(i+sameOften)*time.Second)
			if why := c.cfg.Health.Report().Components["stream"].Detail; !strings.Contains(why, "comes for ever") {
				t.Errorf("/readyz says %q", why)
			}
			ends()
		}
		s.announce()
		tracker.Idle(0x2000)
		tracker.Publish(tracker.Settled())
		is(monitoring.LevelFailed, 6*time.Second)
		tracker.Idle(0x2030)
		tracker.Publish(tracker.Settled())
		is(monitoring.LevelOK, 0)
	})
}

// Without a session nobody knows what was committed meanwhile. So the lag counts from the moment when the stream was last read.
func TestLagWithoutSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := newWatchedConnector()
		lag := func() float64 { return c.Status().Lag.Seconds() }
		c.lag.unreadSince.Store(time.Now().UnixNano())
		time.Sleep(90 * time.Second)
		if got := lag(); got != 90 {
			t.Errorf("a lag of %g s after 90 s without a session", got)
		}
		c.lag.unreadSince.Store(0)
		if got := lag(); got != 0 {
			t.Errorf("a lag of %g s while the stream is read", got)
		}
		// Standing by: what was in flight is the other's to deliver, as long as it is there.
		c.tracker.Store(checkpoint.NewTracker(10, 1<<20, checkpoint.Position{}, 0))
		c.tracker.Load().Add(checkpoint.Position{LSN: 1}, 1, 1, time.Now())
		for range 10 {
			if c.standBy(t.Context(), context.Canceled) != nil {
				t.Error("not standing by")
			}
			if got := lag(); got != 0 {
				t.Errorf("a lag of %g s while another process reads", got)
			}
		}
		time.Sleep(time.Minute) // looking at the slot hangs
		if got := lag(); got < 60 {
			t.Errorf("a lag of %g s after a minute without a look", got)
		}
	})
}

// A duty of the keeper that hangs is ended after 8 s and shown by /readyz and log. It is tried again soon.
func TestDutyThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, log := newWatchedConnector()
		db, err := openPostgres("test", Source{DSN: "host=127.0.0.1 port=1"}) // nobody is there to be asked
		if err != nil {
			t.Error(err)
			return
		}
		defer db.close()
		c.db = db
		var tries atomic.Int32
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
		defer cancel()
		done := make(chan error)
		go func() {
			done <- c.repeatDuty(ctx, duty{name: "d", every: time.Hour, do: func(ctx context.Context) error {
				if tries.Add(1) == 1 {
					<-ctx.Done()
				}
				return ctx.Err()
			}})
		}()
		time.Sleep(dutyTimeout + time.Second)
		r := c.cfg.Health.Report()
		if d := r.Components["keeper:d"]; r.Status != monitoring.LevelDegraded || !strings.Contains(d.Detail, "d: PostgreSQL has not answered within 8s") {
			t.Errorf("%+v", r)
		}
		time.Sleep(dutyRetry)
		if r := c.cfg.Health.Report(); r.Status != monitoring.LevelOK || tries.Load() != 2 {
			t.Errorf("after %d tries: %+v", tries.Load(), r)
		}
		if err := <-done; err != nil || tries.Load() != 2 {
			t.Errorf("%v after %d tries", err, tries.Load())
		}
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "works again") {
			t.Errorf("%d lines:\n%s", n, log)
		}
	})
}

func TestWhatAStatementWaitsFor(t *testing.T) {
	t.Parallel()
	for want, w := range map[string]backendWait{
		"synchronous_standby_names = 'far'": {pid: 1, event: "SyncRep", kind: "IPC", standbys: "far"},
		"a lock (tuple) that pid 7, 8":      {pid: 1, event: "tuple", kind: "Lock", blockers: "7, 8"},
		"waits for DataFileRead (IO)":       {pid: 1, event: "DataFileRead", kind: "IO"},
		"its process does not run":          {pid: 1, state: "active"},
		"has a statement of ours":           {},
	} {
		if got := w.String(); !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

// A server that holds the stream back for a standby is reported after ten seconds, and the lag counts from when that was first seen.
func TestStreamHeldBack(t *testing.T) {
	t.Parallel()
	c, _ := newWatchedConnector()
	began := time.Now()
	for _, step := range []struct {
		at   int
		held string
		lag  float64
		told bool
	}{
		{0, "", 0, false},
		{10, "a, b", 0, false},
		{19, "a, b", 9, false},
		{20, "a, b", 10, true},
		{100, "a, b", 90, true},
		{102, "", 0, false},
		{104, "a, b", 0, false}, // each transaction waits for a moment
		{106, "", 0, false},
	} {
		now := began.Add(time.Duration(step.at) * time.Second)
		err := c.checkHeld(step.held, now)
		if lag := c.lag.since(now, 0).Seconds(); (err != nil) != step.told || lag != step.lag {
			t.Errorf("after %d s: a lag of %g s, %v", step.at, lag, err)
		}
		if err != nil && !strings.Contains(err.Error(), "(a, b)") {
			t.Errorf("%v does not name the slots", err)
		}
	}
}

// A walsender that neither sends nor receives is reported, and the lag counts from the moment when its last reply was first seen.
func TestSenderThatDoesNotRun(t *testing.T) {
	t.Parallel()
	c, _ := newWatchedConnector()
	began := time.Now()
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	for _, step := range []struct {
		at, pid, reply int // reply: 0 is one that may not be seen
		lag            float64
		silent         bool
	}{
		{0, 7, 1, 0, false},
		{10, 7, 1, 0, false},
		{20, 7, 1, 0, false},
		{30, 7, 1, 30, true},
		{40, 7, 1, 40, true},
		{50, 7, 50, 0, false},
		{90, 8, 50, 0, false},
		{100, 8, 0, 0, false},
		{200, 8, 0, 0, false},
		{210, 0, 0, 0, false}, // the server does not answer
		{229, 0, 0, 0, false},
		{230, 0, 0, 30, false},
		{240, 0, 0, 40, false},
		{250, 8, 250, 0, false},
	} {
		if step.pid == 0 {
			c.walsenderUnknown(at(step.at))
			if lag := c.lag.since(at(step.at), 0).Seconds(); lag != step.lag {
				t.Errorf("after %d s: a lag of %g s", step.at, lag)
			}
			continue
		}
		seen := walsenderState{pid: step.pid}
		if step.reply != 0 {
			reply := at(step.reply)
			seen.reply = &reply
		}
		err := c.checkWalsender(seen, at(step.at))
		if lag := c.lag.since(at(step.at), 0).Seconds(); (err != nil) != step.silent || lag != step.lag {
			t.Errorf("after %d s: a lag of %g s, %v", step.at, lag, err)
		}
	}
}
