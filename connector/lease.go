package connector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// leaseFor is how long a Deliver may still begin after a question about the epoch was sent, if its answer was that the epoch is ours. A
	// session that follows one that has not signed off waits as long before its first Deliver.
	leaseFor = 2 * time.Second
	// leaseEvery is how often the question is asked.
	leaseEvery = 500 * time.Millisecond
	// leaseAnswer is how long an answer may take before the question is asked over another connection. It is longer than the
	// connection's lock_timeout, so that an answer that waits for a lock says so.
	leaseAnswer = 2500 * time.Millisecond
	// unansweredFor is how long PostgreSQL may answer nothing at all before the session ends. The connection of the stream may look whole
	// meanwhile: if the network is cut in one direction only, our reports may still arrive, and keep the slot from another process.
	unansweredFor = 12 * time.Second
)

// errUnanswered ends a session that may hold the slot while it cannot ask PostgreSQL for anything.
var errUnanswered = fmt.Errorf("PostgreSQL has answered nothing for %s", unansweredFor)

// lease keeps a process that was frozen, or is cut off from PostgreSQL, from sending messages beside its successor. The slot alone
// does not: such a process still holds events that it has read. So a lane begins a Deliver only if a question that was sent less than
// leaseFor ago has found that the checkpoint still has our epoch.
//
//  1. A successor raises the epoch and commits that, and then waits for leaseFor, unless the session before it has signed off.
//  2. A question that finds the old epoch was sent before that commit. What it permits begins less than leaseFor after it was
//     sent, and so before the successor's first Deliver.
//  3. What had begun by then goes on: at most one batch of each lane.
//
// The wall clock is looked at as well, because the monotonic clock stands still in a machine that is suspended. If the wall clock was
// put back there is no lease until the next answer.
type lease struct {
	notBefore time.Time                  // no Deliver begins before this; zero: no session before may be alive. Set before the lanes start
	asked     atomic.Pointer[leaseAsked] // the last question that has found the epoch ours; nil: none has
	wall      func(now time.Time) int64  // the wall clock in nanoseconds; a test sets another one
}

// leaseAsked is when a question was sent, by both clocks.
type leaseAsked struct {
	at   time.Time
	wall int64
}

func newLease() *lease { return &lease{wall: time.Time.UnixNano} }

// wait returns 0 if a Deliver may begin now, or else for how long to wait before asking again. Safe for all goroutines.
func (l *lease) wait(now time.Time) time.Duration {
	if !l.notBefore.IsZero() {
		if wait := l.notBefore.Sub(now); wait > 0 {
			return wait
		}
	}
	if asked := l.asked.Load(); asked != nil && now.Sub(asked.at) < leaseFor {
		if by := time.Duration(l.wall(now) - asked.wall); by >= 0 && by < leaseFor {
			return 0
		}
	}
	return leaseEvery
}

// renew notes that a question that was sent at this time has found the epoch ours.
func (l *lease) renew(sent time.Time) { l.asked.Store(&leaseAsked{sent, l.wall(sent)}) }

// leaseDatabase is PostgreSQL as the lease needs it.
type leaseDatabase interface {
	// openLease makes a connection for nothing but the lease, so that no other query can hold it up.
	openLease(ctx context.Context) (leaseConnection, error)
}

// leaseConnection is the lease's connection: pgLease, or a test's.
type leaseConnection interface {
	// epoch returns the checkpoint's epoch as it is committed. It waits for no transaction that changes the row. If there is no
	// checkpoint any more, the error is checkpoint.ErrFenced.
	epoch(ctx context.Context) (int32, error)
	close()
}

// keepLease renews the lease until ctx ends. It returns an error, which ends the session, only if another session has taken over, or if
// PostgreSQL answers nothing.
func (s *session) keepLease(ctx context.Context) error {
	report := leaseReport{c: s.c, good: time.Now(), answered: time.Now()}
	if wait := time.Until(s.lease.notBefore); wait > 0 {
		s.c.cfg.Logger.Info("waiting before the first Deliver: the session before did not sign off, and may still send", "slot", s.c.cfg.Source.Slot,
			"wait", wait.Round(time.Millisecond).String())
	}
	for ctx.Err() == nil {
		began := time.Now()
		err := s.keepLeaseOver(ctx, &report)
		if errors.Is(err, checkpoint.ErrFenced) {
			return fmt.Errorf("lease: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		report.failed(err, time.Now())
		if time.Since(report.answered) >= unansweredFor {
			return fmt.Errorf("%w: %w", errUnanswered, err)
		}
		_ = wait.For(ctx, time.Until(began.Add(leaseEvery))) // the loop sees that ctx has ended
	}
	return nil
}

// keepLeaseOver makes a connection and renews the lease over it, until an error or the end of ctx.
func (s *session) keepLeaseOver(ctx context.Context, report *leaseReport) error {
	connecting, cancel := context.WithTimeoutCause(ctx, report.patience(hangAfter), fmt.Errorf("no connection within %s", hangAfter))
	defer cancel()
	conn, err := s.c.db.openLease(connecting)
	if err != nil {
		return cmp.Or(context.Cause(connecting), err)
	}
	defer conn.close()
	for {
		began := time.Now()
		if err := s.askForLease(ctx, conn, report.patience(leaseAnswer)); err != nil {
			return err
		}
		report.renewed(time.Now())
		if err := wait.For(ctx, time.Until(began.Add(leaseEvery))); err != nil {
			return err
		}
	}
}

// askForLease asks once, and wakes the lanes if they had no lease.
func (s *session) askForLease(ctx context.Context, conn leaseConnection, patience time.Duration) error {
	sent := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("PostgreSQL has not answered within %s", leaseAnswer))
	defer cancel()
	epoch, err := conn.epoch(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case epoch != s.reader.start.Epoch:
		return fmt.Errorf("the epoch is %d, ours is %d: %w", epoch, s.reader.start.Epoch, checkpoint.ErrFenced)
	}
	had := s.lease.wait(time.Now()) == 0
	s.lease.renew(sent)
	if !had {
		for _, l := range s.lanes {
			l.ask(0)
		}
	}
	return nil
}

// leaseReport says in health and log that there is no lease: degraded at first, and failed from failAfter on, as for any other call to
// PostgreSQL that gets no answer.
type leaseReport struct {
	c        *Connector
	good     time.Time // when the lease was renewed last
	answered time.Time // when PostgreSQL answered last, be it with an error
	told     bool      // the log has said that there is no lease
}

// patience returns how long to wait for a step that may take this long: not much beyond the end of the session. After the process was frozen
// for long, one question is asked all the same.
func (r *leaseReport) patience(step time.Duration) time.Duration {
	return min(step, max(time.Second, time.Until(r.answered.Add(unansweredFor))))
}

func (r *leaseReport) renewed(now time.Time) {
	if r.told {
		r.told = false
		r.c.cfg.Health.Set("lease", monitoring.OK(""))
		r.c.cfg.Logger.Info("messages are sent again: PostgreSQL answers whether another process has taken over", "slot", r.c.cfg.Source.Slot,
			"waited", now.Sub(r.good).Round(time.Second).String())
	}
	r.good, r.answered = now, now
}

func (r *leaseReport) failed(err error, now time.Time) {
	r.c.noteLogin(err)
	if _, ok := errors.AsType[*pgconn.PgError](err); ok {
		r.answered = now
	}
	waited := now.Sub(r.good)
	if waited < hangAfter {
		return
	}
	text := fmt.Sprintf("no message is sent: for %s PostgreSQL has not said whether another process has taken over: %v", waited.Round(time.Second), err)
	if waited < failAfter {
		r.c.cfg.Health.Set("lease", monitoring.Degraded(text))
	} else {
		r.c.cfg.Health.Set("lease", monitoring.Failed(text))
	}
	if !r.told {
		r.told = true
		r.c.cfg.Logger.Warn("no message is sent until PostgreSQL says whether another process has taken over", "slot", r.c.cfg.Source.Slot, "err", err)
	}
}
