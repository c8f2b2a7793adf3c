package connector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// lastingLease returns a lease that does not end.
func lastingLease() *lease {
	l := newLease()
	l.wall = func(time.Time) int64 { return 0 }
	l.renew(time.Now().AddDate(100, 0, 0))
	return l
}

// A lease lasts for two seconds after the question was sent, by both clocks.
func TestLease(t *testing.T) {
	t.Parallel()
	sent := time.Now()
	for name, tt := range map[string]struct {
		after     time.Duration // by the monotonic clock
		suspended time.Duration // by which the wall clock has gone on beside it
		notBefore time.Duration
		want      time.Duration
	}{
		"at once":                        {},
		"just in time":                   {after: leaseFor - 1},
		"too late":                       {after: leaseFor, want: leaseEvery},
		"the machine was suspended":      {after: time.Second, suspended: time.Second, want: leaseEvery},
		"it was suspended for a moment":  {after: time.Second, suspended: time.Second - 1},
		"the wall clock was put back":    {after: time.Second, suspended: -time.Second - 1, want: leaseEvery},
		"the session before may be here": {after: time.Second, notBefore: 1500 * time.Millisecond, want: 500 * time.Millisecond},
		"it cannot send any more":        {after: time.Second, notBefore: time.Second},
	} {
		l := newLease()
		l.wall = func(now time.Time) int64 {
			if now != sent {
				return now.Add(tt.suspended).UnixNano()
			}
			return now.UnixNano()
		}
		l.notBefore = sent.Add(tt.notBefore)
		if got := l.wait(sent.Add(max(tt.after, 1))); l.asked.Load() == nil && got == 0 {
			t.Errorf("%s: there is a lease before the first answer", name)
		}
		l.renew(sent)
		if got := l.wait(sent.Add(tt.after)); got != tt.want {
			t.Errorf("%s: wait %s, want %s", name, got, tt.want)
		}
	}
}

// A lane without a lease keeps what it has: it begins no Deliver and parks nothing, however long that takes. It reads its rows. When it
// has a lease again it delivers everything in order, at once.
func TestLaneWithoutALease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		b.delivery.ParkAfter, b.lane.lease = 10*time.Second, newLease()
		b.sharedSink.lease = b.lane.lease
		b.run()
		b.arrive("a1", "b1", "a2")
		time.Sleep(time.Minute)
		if calls, rows := b.gotCalls(), b.ledger.rows; calls != "" || len(rows) != 0 {
			t.Errorf("without a lease: calls %s, %d rows are parked", calls, len(rows))
		}
		renew := func() {
			b.lease.renew(time.Now())
			b.ask(0)
			time.Sleep(time.Millisecond)
		}
		renew()
		check(t, "with a lease", b.gotCalls(), "[a1 b1 a2]@1m0s ")
		time.Sleep(leaseFor)
		b.arrive("a3")
		time.Sleep(time.Second)
		renew()
		check(t, "with the next lease", b.gotCalls(), "[a1 b1 a2]@1m0s [a3]@1m3s ")
		b.stop()
	})
}

// The process is frozen after the lane has decided to deliver, and before the sink is called. The call does not begin when the process
// thaws. What it was to deliver goes first when there is a lease again, and is not parked.
func TestFrozenBeforeDeliver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(context.Context, int, []sinks.Message) []error { return nil })
		l := newLease()
		b.delivery.ParkAfter, b.sharedSink.lease = 10*time.Second, l
		l.renew(time.Now())
		var frozen, thawed atomic.Int64
		l.wall = func(now time.Time) int64 { return now.UnixNano() + frozen.Load() }
		b.fast = func() bool { // the lane looks at the stream after it has looked at the lease
			if len(b.arrivals.list) > 0 && b.lease.wait(time.Now()) == 0 && thawed.Load() == 0 {
				frozen.Store(int64(time.Hour))
			}
			return false
		}
		b.run()
		time.Sleep(time.Second)
		b.arrive("a1", "b1")
		time.Sleep(time.Millisecond)
		b.arrive("a2", "c1")
		time.Sleep(time.Minute)
		if calls, rows := b.gotCalls(), b.ledger.rows; calls != "" || len(rows) != 0 {
			t.Errorf("after the thaw: calls %s, %d rows are parked", calls, len(rows))
		}
		thawed.Store(1)
		frozen.Store(0)
		l.renew(time.Now())
		b.ask(0)
		time.Sleep(time.Millisecond)
		check(t, "with a lease", b.gotCalls(), "[a1 b1]@1m1s [a2 c1]@1m1s ")
		b.stop()
	})
}

// leaseDatabaseFake is a PostgreSQL that is asked for nothing but the lease.
type leaseDatabaseFake struct {
	database
	open func(ctx context.Context) (leaseConnection, error)
}

func (d leaseDatabaseFake) openLease(ctx context.Context) (leaseConnection, error) {
	return d.open(ctx)
}

// leaseAnswers answers the lease's question.
type leaseAnswers func(ctx context.Context) (int32, error)

func (f leaseAnswers) epoch(ctx context.Context) (int32, error) { return f(ctx) }
func (f leaseAnswers) close()                                   {}

// leaseBench is a session that does nothing but to keep its lease. The test says what PostgreSQL answers.
type leaseBench struct {
	*session
	log    bytes.Buffer
	epoch  atomic.Int32          // of the checkpoint
	away   atomic.Pointer[error] // why no question is answered, and no connection made
	takes  atomic.Int64          // how long an answer takes
	hangs  atomic.Int32          // so many connections hang
	asked  atomic.Int32
	opened atomic.Int32
	ended  chan error
	stop   context.CancelFunc
}

func newLeaseBench(t *testing.T) *leaseBench {
	b := &leaseBench{ended: make(chan error, 1)}
	b.away.Store(new(error))
	b.epoch.Store(7)
	c := New(Config{Health: &monitoring.Health{}, Metrics: monitoring.NewMetrics("", nil), Logger: slog.New(slog.NewTextHandler(&b.log, nil))})
	c.db = leaseDatabaseFake{open: func(ctx context.Context) (leaseConnection, error) {
		return leaseAnswers(b.answer), b.openedOne()
	}}
	b.session = &session{c: c, lease: newLease(), reader: &reader{start: ledger.Start{Checkpoint: ledger.Checkpoint{Epoch: 7}}}}
	ctx, stop := context.WithCancel(t.Context())
	b.stop = stop
	go func() { b.ended <- b.keepLease(ctx) }()
	return b
}

func (b *leaseBench) openedOne() error {
	b.opened.Add(1)
	return *b.away.Load()
}

func (b *leaseBench) answer(ctx context.Context) (int32, error) {
	b.asked.Add(1)
	if b.opened.Load() <= b.hangs.Load() {
		<-ctx.Done()
		return 0, fmt.Errorf("read: %w", ctx.Err())
	}
	time.Sleep(time.Duration(b.takes.Load()))
	return b.epoch.Load(), *b.away.Load()
}

func (b *leaseBench) held() bool { return b.lease.wait(time.Now()) == 0 }

func (b *leaseBench) health() string {
	c := b.c.cfg.Health.Report().Components["lease"]
	return strings.TrimSpace(string(c.Status) + " " + c.Detail)
}

// The lease is asked for twice a second over one connection, and lasts as long as PostgreSQL answers.
func TestLeaseIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLeaseBench(t)
		b.takes.Store(int64(300 * time.Millisecond))
		time.Sleep(300*time.Millisecond + 1)
		for range 1000 {
			if !b.held() {
				t.Fatal("no lease")
			}
			time.Sleep(100 * time.Millisecond)
		}
		b.stop()
		if err := <-b.ended; err != nil || b.asked.Load() != 201 || b.opened.Load() != 1 || b.health() != "" || b.log.Len() > 0 {
			t.Errorf("ended with %v after %d questions over %d connections; health %q, log %s", err, b.asked.Load(), b.opened.Load(), b.health(), &b.log)
		}
	})
}

// A question that is not answered is asked again over another connection, so that one connection that hangs costs no lease for long. A
// late answer is worth nothing.
func TestLeaseQuestionHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLeaseBench(t)
		time.Sleep(10*time.Second - 1)
		b.hangs.Store(1) // from the question of the 10th second on
		time.Sleep(time.Nanosecond)
		time.Sleep(leaseFor - leaseEvery - 1)
		if !b.held() {
			t.Error("the lease ends too early")
		}
		time.Sleep(time.Nanosecond)
		if b.held() {
			t.Error("the lease does not end")
		}
		time.Sleep(leaseAnswer + leaseEvery - leaseFor)
		synctest.Wait()
		if !b.held() || b.opened.Load() != 2 {
			t.Errorf("after %d connections there is no lease again", b.opened.Load())
		}
		b.stop()
		if err := <-b.ended; err != nil || b.health() != "" || b.log.Len() > 0 {
			t.Errorf("ended with %v; health %q, log %s", err, b.health(), &b.log)
		}
	})
}

// If there is no lease for long, /readyz and the log say why: degraded at first, and then failed.
func TestLeaseLostForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLeaseBench(t)
		time.Sleep(10*time.Second + 1)
		var away error = &pgconn.PgError{Severity: "FATAL", Code: "53300", Message: "too many clients already"}
		b.away.Store(&away)
		for second, want := range map[int]string{
			4:  "",
			6:  "degraded no message is sent: for 6s PostgreSQL has not said whether another process has taken over: FATAL: too many clients already (SQLSTATE 53300)",
			11: "failed no message is sent: for 11s PostgreSQL has not said whether another process has taken over: FATAL: too many clients already (SQLSTATE 53300)",
		} {
			time.AfterFunc(time.Duration(second)*time.Second, func() {
				if got := b.health(); got != want {
					t.Errorf("after %d s: %q, want %q", second, got, want)
				}
			})
		}
		time.Sleep(20 * time.Second)
		b.away.Store(new(error))
		time.Sleep(time.Second)
		if !b.held() || b.health() != "ok" {
			t.Errorf("health %s", b.health())
		}
		b.stop()
		if err := <-b.ended; err != nil || strings.Count(b.log.String(), "\n") != 2 || !strings.Contains(b.log.String(), "level=WARN") || !strings.Contains(b.log.String(), "messages are sent again") {
			t.Errorf("ended with %v; the log says\n%s", err, &b.log)
		}
	})
}

// If PostgreSQL answers nothing, the session ends: it may hold the slot all the same, if the network is cut in one direction only.
func TestLeaseUnanswered(t *testing.T) {
	t.Parallel()
	refused := errors.New("connection refused")
	for name, breaks := range map[string]func(*leaseBench){
		"hangs":   func(b *leaseBench) { b.hangs.Store(1000) },
		"refused": func(b *leaseBench) { b.away.Store(&refused) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newLeaseBench(t)
				time.Sleep(10*time.Second - 1) // the last answer comes at 9.5 s
				breaks(b)
				began := time.Now()
				time.AfterFunc(time.Minute, b.stop) // so that it ends at all
				err := <-b.ended
				if took := time.Since(began) + leaseEvery; !errors.Is(err, errUnanswered) || took < unansweredFor || took > unansweredFor+time.Second {
					t.Errorf("ended after %s with %v", took, err)
				}
				if !strings.HasPrefix(b.health(), "failed no message is sent: for 12s") {
					t.Error(b.health())
				}
				b.stop()
			})
		})
	}
}

// Another epoch ends the session.
func TestLeaseOfAnotherEpoch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLeaseBench(t)
		time.Sleep(10*time.Second + 1)
		b.epoch.Store(8)
		time.Sleep(leaseEvery)
		select {
		case err := <-b.ended:
			if !errors.Is(err, checkpoint.ErrFenced) {
				t.Errorf("ended with %v", err)
			}
		default:
			t.Error("the session goes on")
		}
		b.stop()
	})
}

// A session that follows one that has not signed off begins no Deliver for two seconds, unless that one was its own.
func TestUncleanEndOfTheSessionBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name  string
			own   int32 // epoch of the last session of this connector
			ended bool
			waits time.Duration
		}{
			{"another process, ended", 0, true, 0},
			{"another process", 0, false, leaseFor},
			{"the session before", 6, false, 0},
			{"the session before the last one", 5, false, leaseFor},
		} {
			c := New(Config{Health: &monitoring.Health{}, Metrics: monitoring.NewMetrics("", nil), Logger: slog.New(slog.DiscardHandler)})
			c.progress.epoch = tt.own
			s := &session{c: c, lease: newLease()}
			s.awaitPredecessor(ledger.Start{Checkpoint: ledger.Checkpoint{Epoch: 7}, Ended: tt.ended})
			s.lease.renew(time.Now())
			if got := s.lease.wait(time.Now()); got != tt.waits || c.progress.epoch != 7 {
				t.Errorf("%s: waits %s, want %s; own epoch %d", tt.name, got, tt.waits, c.progress.epoch)
			}
		}
	})
}

// The two seconds are counted from when the epoch was raised, also if the first session after that ends sooner: the process before that one
// may still have its lease.
func TestUncleanEndBeforeTheSessionBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Health: &monitoring.Health{}, Metrics: monitoring.NewMetrics("", nil), Logger: slog.New(slog.DiscardHandler)})
		first := &session{c: c, lease: newLease()}
		first.awaitPredecessor(ledger.Start{Checkpoint: ledger.Checkpoint{Epoch: 7}})
		time.Sleep(leaseFor / 4)
		for _, ended := range []bool{false, true} {
			next := &session{c: c, lease: newLease()}
			next.awaitPredecessor(ledger.Start{Checkpoint: ledger.Checkpoint{Epoch: c.progress.epoch + 1}, Ended: ended})
			next.lease.renew(time.Now())
			if got := next.lease.wait(time.Now()); got != leaseFor*3/4 {
				t.Errorf("the session before has said that it ended, %t: waits %s, want %s", ended, got, leaseFor*3/4)
			}
		}
	})
}

// The lease counts from the question, however long the answer takes.
func TestLeaseFromTheQuestion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLeaseBench(t)
		b.takes.Store(int64(leaseFor - leaseEvery))
		time.Sleep(leaseFor - leaseEvery + 1)
		synctest.Wait()
		if !b.held() {
			t.Error("the first answer gives no lease")
		}
		time.Sleep(leaseEvery)
		if b.held() {
			t.Error("the first lease lasts too long")
		}
		b.stop()
		if err := <-b.ended; err != nil {
			t.Error(err)
		}
	})
}

// A sink whose lanes have no lease makes the reader wait, and is not slow.
func TestSlowRuleWithoutALease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		shared := func(id int32) *sharedSink { return &sharedSink{id: id} }
		lanes := map[int32][]*lane{1: {newLane(shared(1), 0, rowSource{}, nil)}, 2: {newLane(shared(2), 0, rowSource{}, nil)}}
		lanes[2][0].shown.idle.Store(true)
		var waits atomic.Int32
		waits.Store(1)
		slow := newSlowRule(checkpoint.NewTracker(10, 1<<20, checkpoint.Position{}, 0), &waits, lanes, 10*time.Second)
		slow.lease = newLease()
		for range 2 * slowTicks {
			slow.tick()
		}
		if lanes[1][0].asks.Load() != 0 {
			t.Error("its arrivals are parked")
		}
		slow.lease.renew(time.Now())
		for range slowTicks/2 + 1 {
			slow.tick()
		}
		if lanes[1][0].asks.Load() != askPark {
			t.Error("it is slow with a lease, and its arrivals are not parked")
		}
	})
}

// leavingDatabase counts the sessions that sign off.
type leavingDatabase struct {
	database
	signedOff int
}

func (d *leavingDatabase) leave(context.Context, ledger.Departure) error {
	d.signedOff++
	return nil
}

// A session that ends while the one before it may still send does not sign off, because its successor would deliver at once.
func TestNobodySignsOffForTheSessionBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &leavingDatabase{}
		c := New(Config{Health: &monitoring.Health{}, Metrics: monitoring.NewMetrics("", nil), Logger: slog.New(slog.DiscardHandler)})
		c.db = db
		s := &session{c: c, lease: newLease(), tracker: checkpoint.NewTracker(10, 1<<20, checkpoint.Position{}, 0), reader: &reader{}}
		s.awaitPredecessor(ledger.Start{Checkpoint: ledger.Checkpoint{Epoch: 7}})
		time.Sleep(leaseFor - time.Nanosecond)
		if s.leave(t.Context()); db.signedOff != 0 {
			t.Error("it signs off before that one's lease has ended")
		}
		time.Sleep(time.Nanosecond)
		if s.leave(t.Context()); db.signedOff != 1 {
			t.Error("it does not sign off after that one's lease has ended")
		}
	})
}
