package service

import (
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

func (b *supervisorBench) tell(state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = append(b.told, state)
}

// tells wants these messages since the last call, and returns nothing of them again.
func (b *supervisorBench) tells(want ...string) {
	b.t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !reflect.DeepEqual(b.told, want) {
		b.t.Errorf("told %q, want %q", b.told, want)
	}
	b.told = nil
}

// toldWithoutPings wants these messages since the last call, beside WATCHDOG=1 and STATUS=.
func (b *supervisorBench) toldWithoutPings(want string) {
	b.t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	var got []string
	for _, m := range b.told {
		if m != "WATCHDOG=1" && !strings.HasPrefix(m, "STATUS=") {
			got = append(got, strings.ReplaceAll(m, "\n", " "))
		}
	}
	if strings.Join(got, ", ") != want {
		b.t.Errorf("told %q, want %q", got, want)
	}
	b.told = nil
}

// A connector that streams is alive each 5 s, and says what it does if that has changed.
func TestNoticesOfALife(t *testing.T) {
	t.Parallel()
	inBubble(t, func(_ *testing.T, b *supervisorBench) {
		b.supervisor.health.SetOnly("session", monitoring.OK("streaming"))
		time.Sleep(10 * time.Second)
		b.tells("WATCHDOG=1", "STATUS=streaming", "WATCHDOG=1")
		b.supervisor.health.Set("sink:events", monitoring.Degraded("away:\nno broker"))
		b.supervisor.health.Set("recorder", monitoring.Failed("no right"))
		time.Sleep(5 * time.Second)
		b.tells("WATCHDOG=1", "STATUS=streaming; recorder failed: no right; sink:events degraded: away: no broker")
		b.now(func(*answers) { b.built[0].drain = 12 * time.Second })
		b.stop()
		time.Sleep(11 * time.Second)
		b.tells("STOPPING=1\nSTATUS=ending: running deliveries end first", "WATCHDOG=1", "WATCHDOG=1")
	})
}

// A connector whose state can no longer be read ends the pings.
func TestNoPingsWhileTheStateHangs(t *testing.T) {
	t.Parallel()
	inBubble(t, func(_ *testing.T, b *supervisorBench) {
		time.Sleep(20 * time.Second)
		b.tells("WATCHDOG=1", "STATUS=starting", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
		stuck := make(chan struct{})
		b.last().stuck.Store(&stuck)
		time.Sleep(time.Hour)
		b.mu.Lock()
		told := b.told
		b.mu.Unlock()
		close(stuck)
		if len(told) != 0 {
			b.t.Errorf("a process that is stuck has told %q", told)
		}
	})
}

// A reload is over when the next connector works, and also when the configuration has mistakes or has not changed.
func TestNoticesOfAReload(t *testing.T) {
	t.Parallel()
	inBubble(t, func(_ *testing.T, b *supervisorBench) {
		const begins = "RELOADING=1 MONOTONIC_USEC=1 "
		b.hup()
		time.Sleep(time.Second)
		b.toldWithoutPings(begins + ", READY=1")
		b.now(func(a *answers) { a.fileErr = errors.New("a mistake") })
		b.hup()
		time.Sleep(time.Second)
		b.toldWithoutPings(begins + ", READY=1")
		b.now(func(a *answers) { a.fileErr, a.file = nil, configWith("b"); b.built[0].drain = 20 * time.Second })
		b.hup()
		time.Sleep(19 * time.Second)
		synctest.Wait()
		b.mu.Lock()
		pings := len(b.told) - 1
		b.mu.Unlock()
		if pings < 3 {
			b.t.Errorf("%d pings while running deliveries end, want one each 5 s", pings)
		}
		b.toldWithoutPings(begins)
		time.Sleep(2 * time.Second)
		b.toldWithoutPings("READY=1")
		b.says("the new configuration is in use")
	})
}

// READY is told after 10 s also if PostgreSQL is away, so that systemd does not end a process that waits for it.
func TestReadyWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &supervisorBench{t: t}
		s := newSupervisor(&monitoring.Health{}, slog.New(slog.DiscardHandler))
		s.notices.begin(Systemd{Tell: b.tell})
		defer s.notices.end()
		waits := &life{runner: &fakeConnector{bench: b}, inUse: true}
		if s.noteReady(waits) {
			t.Error("ready before anything works")
		}
		time.Sleep(readyWithin - time.Millisecond)
		if s.noteReady(waits) {
			t.Error("ready before its time")
		}
		b.tells()
		time.Sleep(time.Millisecond)
		for range 2 { // the second time says nothing
			if !s.noteReady(waits) {
				t.Error("not ready in time")
			}
		}
		b.tells("READY=1")
	})
}

func TestNoticeIsShort(t *testing.T) {
	t.Parallel()
	for _, text := range []string{strings.Repeat("é", 400), strings.Repeat("x", 400)} {
		if got := clipped(text); len(got) > maxNotice || !strings.HasSuffix(got, "…") || strings.Contains(got, "\ufffd") {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}
