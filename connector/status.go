package connector

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// Status returns the state of the connector. It waits for nothing and asks nobody. Safe for all goroutines, also before Run
// and after it.
func (c *Connector) Status() monitoring.Status {
	now := time.Now()
	st := c.life.status()
	st.At, st.Source, st.Cleanup, st.Accounts, st.Database = now, c.source, c.kept.cleaned.Load(), c.kept.accounts.shown.Load(), c.measured.status()
	if t := c.tracker.Load(); t != nil {
		w := t.Snapshot(now)
		st.InFlight, st.Confirmed, st.Prefix, st.Lag = w.InFlight, w.Confirmed, w.Prefix.LSN, w.Lag
		if st.Role != monitoring.RoleStandby { // else another process reads the stream, and confirms
			st.LagBytes = w.LagBytes
		}
	}
	st.Lag = c.lag.since(now, st.Lag)
	st.LanesPerSink = c.cfg.Delivery.Lanes
	st.OwnWAL = c.stages.ownWAL.Load()
	st.Mended = monitoring.MendedCounts{Publications: c.outbox.publicationChanges.Load(), Slots: c.progress.resyncs.made.Load()}
	st.Invalid, st.Unrouted = c.noSink.invalid.Load(), c.noSink.unrouted.Load()
	st.Stages = c.stages.status(now)
	for _, s := range c.cfg.Sinks {
		lasting := c.sinks[s.Name]
		sink := lasting.state.status()
		sink.Objective = lasting.objective.status(now)
		sink.Backlog = lasting.job.status(now, &sink)
		st.Sinks = append(st.Sinks, sink)
		st.Stages.Busy = append(st.Stages.Busy, lasting.state.work.status(now, s.Name, c.cfg.Delivery.Lanes)...)
	}
	return st
}

// shownStatus returns the state as the process shows it.
func (c *Connector) shownStatus() monitoring.Status {
	if c.cfg.Status != nil {
		return c.cfg.Status()
	}
	return c.Status()
}

// life is what Status tells of the sessions of a connector.
type life struct {
	mu        sync.Mutex
	role      monitoring.Role
	streaming bool
	since     time.Time // when streaming changed; zero before Run
	sessions  int64     // that have streamed
	epoch     int32     // of the last of them
	err       string    // why the last session that failed has ended
	errAt     time.Time
}

func (l *life) status() monitoring.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return monitoring.Status{
		Role: l.role, Streaming: l.streaming, Since: l.since, Sessions: l.sessions, Epoch: l.epoch, LastError: l.err, LastErrorAt: l.errAt,
	}
}

// begins notes the begin of Run.
func (l *life) begins() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Now()
}

// streams notes that a session with this epoch reads the stream.
func (l *life) streams(epoch int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streaming, l.since = true, time.Now()
	l.sessions++
	l.epoch = epoch
}

// sessionEnded notes the end of a session, or of the try to begin one. err says why, or is nil.
func (l *life) sessionEnded(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.streaming {
		l.streaming, l.since = false, now
	}
	// To wait for a slot that another process has, or to be asked to stop, is no failure.
	if err != nil && !errors.Is(err, replication.ErrSlotInUse) && !errors.Is(err, context.Canceled) {
		l.err, l.errAt = err.Error(), now
	}
}

func (l *life) roleIs(role monitoring.Role) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.role = role
}

// roleIs notes whether this process has the slot or stands by.
func (c *Connector) roleIs(role monitoring.Role) {
	c.life.roleIs(role)
	c.cfg.Health.SetRole(role)
}

// sessionEnded notes the end of a session, or of the try to begin one. err says why, or is nil.
func (c *Connector) sessionEnded(err error) {
	c.lag.unreadSince.CompareAndSwap(0, time.Now().UnixNano())
	c.life.sessionEnded(err)
	for _, s := range c.sinks {
		s.state.end()
		s.job.end()
	}
}

// noSinkCounts count what goes to no sink. The reader counts.
type noSinkCounts struct {
	invalid  atomic.Int64 // rows that are no events
	unrouted atomic.Int64 // events that no route matches
}

// lagClock holds the moments from which the lag in time is counted while the tracker alone cannot know it.
// Times are Unix nanoseconds, and 0 means that the state has not come up.
type lagClock struct {
	unreadSince atomic.Int64   // since when no session reads the stream, or none gets past a place whose error repeats
	othersRead  atomic.Bool    // another process was seen to read it since then
	silentSince atomic.Int64   // since when the walsender has taken none of our status messages
	heldSince   atomic.Int64   // since when the server holds the stream back for a standby
	walsender   walsenderState // only the keeper uses it
}

// since returns the lag in time, where known is what the tracker knows of it. While no session reads the stream, nobody knows
// what was committed meanwhile. The lag is then counted from the moment when a session last read it, so that it goes on growing.
// The same holds while the walsender takes none of our status messages, and while it holds the stream back for a standby.
func (l *lagClock) since(now time.Time, known time.Duration) time.Duration {
	lag := known
	if n := l.unreadSince.Load(); n != 0 {
		unread := now.Sub(time.Unix(0, n))
		if l.othersRead.Load() && unread < hangAfter {
			lag = 0 // another process reads the stream, and delivers what was in flight here
		} else {
			lag = max(lag, unread)
		}
	}
	if n := l.heldSince.Load(); n != 0 {
		lag = max(lag, now.Sub(time.Unix(0, n)))
	}
	if n := l.silentSince.Load(); n != 0 {
		lag = max(lag, now.Sub(time.Unix(0, n)))
	}
	return lag
}
