package service

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// noticesEvery is how often systemd is told that the process is alive, and what it does if that has changed. A
	// watchdog that waits for less than three times as long is told more often.
	noticesEvery = 5 * time.Second
	// readyWithin is how long after the start systemd is told READY at the latest. Mistakes that end the process, such as
	// a privilege that is missing, show within this time, so that "systemctl start" reports them. What lasts longer is a database
	// that is away: the process waits for it, and a service manager that waits as well would end it, and start it again, for ever.
	readyWithin = 10 * time.Second
	// maxNotice bounds the text for "systemctl status".
	maxNotice = 300
)

// Systemd is what the process tells systemd, in the words of sd_notify(3). The zero value tells nothing.
type Systemd struct {
	// Tell sends one state, such as READY=1 or STATUS=streaming.
	Tell func(state string)
	// Clock returns the line MONOTONIC_USEC= that goes with RELOADING=1.
	Clock func() string
	// Watchdog is how long systemd waits for the next WATCHDOG=1 before it ends the process. It is 0 if it does not wait.
	Watchdog time.Duration
}

// notices tells systemd what the supervisor does. Only the goroutine of the supervisor uses it: if that goroutine hangs, or
// one that holds a lock of the connector's state, WATCHDOG=1 is not sent any more, and systemd starts the process anew.
type notices struct {
	Systemd
	ticker *time.Ticker // nil if nobody is told anything
	due    time.Time    // when READY is sent at the latest; zero if it was sent
	said   string       // the last STATUS
	stops  bool         // STOPPING was sent
}

// begin starts the ticks. The caller stops them by end.
func (n *notices) begin(m Systemd) {
	if m.Tell == nil {
		return
	}
	every := noticesEvery
	if m.Watchdog > 0 {
		every = min(every, m.Watchdog/3)
	}
	n.Systemd, n.ticker, n.due = m, time.NewTicker(max(every, time.Millisecond)), time.Now().Add(readyWithin)
}

func (n *notices) end() {
	if n.ticker != nil {
		n.ticker.Stop()
	}
}

// ticks receives a value when tick is to be called.
func (n *notices) ticks() <-chan time.Time {
	if n.ticker == nil {
		return nil
	}
	return n.ticker.C
}

// stopping is closed when stop is to be called.
func (n *notices) stopping(ctx context.Context) <-chan struct{} {
	if n.ticker == nil || n.stops {
		return nil
	}
	return ctx.Done()
}

// stop tells that the process ends, and delivers what it has in hand before.
func (n *notices) stop() {
	n.stops, n.due = true, time.Time{}
	n.Tell("STOPPING=1\nSTATUS=ending: running deliveries end first")
}

// reload tells that a reload begins. systemd waits for READY then.
func (n *notices) reload() {
	if n.ticker == nil {
		return
	}
	n.due = time.Now().Add(readyWithin)
	n.Tell("RELOADING=1\n" + n.Clock())
}

// ready tells that the start or the reload is over, unless this was told already.
func (n *notices) ready() {
	if !n.due.IsZero() {
		n.due = time.Time{}
		n.Tell("READY=1")
	}
}

// noteReady tells systemd that the connector is ready, once it works or readyWithin has passed. It reports whether nothing more has to be
// told.
func (s *supervisor) noteReady(l *life) bool {
	if n := &s.notices; !n.due.IsZero() && (l.inUse && l.hasWorked() || !time.Now().Before(n.due)) {
		n.ready()
	}
	return s.notices.due.IsZero()
}

// tick tells that the process is alive, and what it does.
func (s *supervisor) tick(l *life) {
	st := l.Status() // waits for the locks of the connector's state, and so does the watchdog
	n := &s.notices
	if n.Watchdog > 0 {
		n.Tell("WATCHDOG=1")
	}
	if text := noticeOf(s.health.ReportOf(&st)); text != n.said && !n.stops {
		n.said = text
		n.Tell("STATUS=" + text)
	}
}

// noticeOf says in one line what the process does, and then what does not work, the worst first.
func noticeOf(r monitoring.Report) string {
	parts := []string{cmp.Or(r.Components["session"].Detail, "starting")}
	var bad []string
	for name, c := range r.Components {
		if name != "session" && c.Status != monitoring.LevelOK {
			bad = append(bad, name)
		}
	}
	slices.SortFunc(bad, func(a, b string) int {
		failed := func(name string) int {
			if r.Components[name].Status == monitoring.LevelFailed {
				return 0
			}
			return 1
		}
		return cmp.Or(failed(a)-failed(b), strings.Compare(a, b))
	})
	for _, name := range bad {
		parts = append(parts, name+" "+string(r.Components[name].Status)+": "+r.Components[name].Detail)
	}
	return clipped(strings.Join(parts, "; "))
}

// clipped makes one line of at most maxNotice bytes of a text.
func clipped(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) <= maxNotice {
		return text
	}
	return strings.ToValidUTF8(text[:maxNotice-len("…")], "") + "…"
}
