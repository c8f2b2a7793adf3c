package connector

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Predecessor says how it went with the connector that ran before this one in the same process, with another configuration. The
// next connector runs only after it has ended.
type Predecessor struct {
	// Worked is true if it has streamed or stood by, with the same logins and from the same slot as this one. PostgreSQL may then come
	// and go: neither an outage nor a refused login ends Run.
	Worked bool
	// HadSlot is true if it has streamed until it was ended. PostgreSQL may need a moment to release the slot.
	HadSlot bool
	// Outages are its Outages.
	Outages map[string]time.Time
}

// Outages returns, by the name of the sink, since when the log says that a sink does not accept, if it does not yet say that this is
// over. The log of the next connector goes on from there. It may be called only after Run has returned.
func (c *Connector) Outages() map[string]time.Time {
	since := map[string]time.Time{}
	for _, s := range c.outages.sinks {
		if s.outage.told || !s.catching.since.IsZero() && !s.catching.told {
			since[s.state.name] = s.outage.began
		}
	}
	return since
}

// firstHealth is what /readyz says of the session until the first session begins.
func (p Predecessor) firstHealth() monitoring.Component {
	if p.Worked {
		return monitoring.Degraded("reloading: goes on with another configuration")
	}
	return monitoring.Failed("starting")
}

const (
	// slotRelease is how long PostgreSQL may take to release the slot of a predecessor. After that, another process has it.
	slotRelease = time.Second
	// slotRetry is how often the slot of a predecessor is asked for.
	slotRetry = 20 * time.Millisecond
)

// slotIsOnItsWay reports whether a slot that is in use will probably be released in a moment, because it is the predecessor's.
// It is not, if this connector has streamed or stood by already.
func (c *Connector) slotIsOnItsWay(running time.Duration) bool {
	return c.cfg.Predecessor.HadSlot && c.life.status().Sessions == 0 && !c.progress.standingBy && running < slotRelease
}

// loginWatch is Config.LoginRefused.
type loginWatch func()

// note calls the function if err says that PostgreSQL or a sink has refused our login.
func (tell loginWatch) note(err error) {
	if tell != nil && isRefusedLogin(err) {
		tell()
	}
}

// noteLogin calls Config.LoginRefused if err says that a login was refused.
func (c *Connector) noteLogin(err error) { loginWatch(c.cfg.LoginRefused).note(err) }

func isRefusedLogin(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (pg.Code == "28P01" || pg.Code == "28000") {
		return true
	}
	return sinks.IsRefusedLogin(err)
}

// logins are the connection strings that the next connection to PostgreSQL uses. Those that are open go on when a password is changed.
type logins struct {
	present atomic.Pointer[[2]string] // for SQL and for replication
	changed chan struct{}             // holds a value after a change
}

func newLogins(s Source) *logins {
	l := &logins{changed: make(chan struct{}, 1)}
	l.present.Store(&[2]string{s.DSN, s.ReplicationDSN})
	return l
}

func (l *logins) sql() string         { return l.present.Load()[0] }
func (l *logins) replication() string { return l.present.Load()[1] }

// sleep waits for d, or until other logins are there. If ctx ends before, it returns an error that says why.
func (l *logins) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.changed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// UseLogins says which connection strings every later connection uses. They lead to the same database by the same users, with other
// passwords. Safe for all goroutines.
func (c *Connector) UseLogins(dsn, replicationDSN string) {
	c.logins.present.Store(&[2]string{dsn, replicationDSN})
	select {
	case c.logins.changed <- struct{}{}:
	default: // the connector has not looked since the last change
	}
}
