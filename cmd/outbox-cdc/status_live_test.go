package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// freeAddress is an address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// lockedBuffer is a buffer for a command that runs beside the test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// beside runs a command until the returned function is called, which waits for its end and returns its exit code.
func beside(t *testing.T, environ []string, out *lockedBuffer, args ...string) (stop func() exitcode.Code) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan exitcode.Code, 1)
	go func() { ended <- execute(ctx, args, environ, out, out) }()
	stop = sync.OnceValue(func() exitcode.Code {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { stop() })
	return stop
}

// Two connectors: the screen names the leader and the standby and has the leader's rates. With --watch it goes on when both have ended, and
// ends with 0.
func TestStatusOfTwoConnectors(t *testing.T) {
	t.Parallel()
	db := pgtest.Unmigrated(t)
	slot := db.Slot(t)
	common := []string{"DATABASE_URL=" + db.DSN, "OUTBOX_SLOT=" + slot, "OUTBOX_PUBLICATION=" + slot, "OUTBOX_PUBLISHER_TYPE=stdout"}
	environ := func(listen string) []string { return append([]string{"OUTBOX_LISTEN=" + listen}, common...) }
	first, second := freeAddress(t), freeAddress(t)
	if got := command(t, environ("off"), "init"); got.code != exitcode.OK {
		t.Fatal(got)
	}
	var log, watched lockedBuffer
	defer func() {
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	stops := []func() exitcode.Code{beside(t, environ(first), &log, "run")}
	read := func() (s admin.Status) {
		t.Helper()
		got := command(t, environ("off"), "status", "-o", "json")
		if err := json.Unmarshal([]byte(got.stdout), &s); err != nil || got.code != exitcode.OK {
			t.Fatal(err, got)
		}
		return s
	}
	until := func(what string, ok func(admin.Status) bool) admin.Status {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; {
			s := read()
			if ok(s) {
				return s
			}
			if time.Now().After(deadline) {
				text, _ := json.MarshalIndent(s, "", "  ")
				t.Fatalf("%s: not within a minute:\n%s", what, text)
			}
		}
	}
	until("a leader", func(s admin.Status) bool { return s.Slot.State == admin.SlotStreams && s.Slot.LagSeconds != nil })
	stops = append(stops, beside(t, environ(second), &log, "run"))
	conn := db.Conn(t)
	pgtest.Exec(t, conn, "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'order', i::text, 'made', '{}' from generate_series(1, 100) i")
	s := until("a standby, and a rate", func(s admin.Status) bool {
		return len(s.Instances) == 2 && s.Sinks[0].RateMinute != nil && *s.Sinks[0].RateMinute > 0 && s.Instances[1].Health != "" &&
			s.Sinks[0].Objective != nil && s.Sinks[0].Objective.InTimePercent != nil
	})
	leader, standby := s.Instances[0], s.Instances[1]
	if leader.Role != monitoring.RoleLeader || leader.Address != first || standby.Role != monitoring.RoleStandby || standby.Address != second ||
		leader.Error+standby.Error != "" || s.Sinks[0].Condition != monitoring.ConditionOK || s.Level != monitoring.LevelOK {
		t.Errorf("%+v\n%+v", s.Instances, s)
	}
	text := command(t, environ("off"), "status").stdout
	for _, want := range []string{": ok", slot + " is streamed", "INSTANCES leader on ", "standby on ", "TO DO     nothing", "99% in 1s"} {
		if !strings.Contains(text, want) {
			t.Errorf("the screen lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Errorf("colours without a terminal:\n%q", text)
	}

	// The report has the results when the minute is over, and the stages of the leader at once.
	var r admin.Report
	if got := command(t, environ("off"), "report", "-o", "json"); got.code != exitcode.OK || json.Unmarshal([]byte(got.stdout), &r) != nil ||
		r.Stages == nil || r.Stages.PID != leader.PID || r.Stages.All[0].BusySeconds == 0 || len(r.Unknown) != 0 {
		t.Errorf("the report: %+v", got)
	}

	endWatch := beside(t, environ("off"), &watched, "status", "--watch", "--interval", "200ms", "-o", "json")
	for _, stop := range stops {
		if code := stop(); code != exitcode.OK {
			t.Errorf("run has ended with %d", code)
		}
	}
	for deadline := time.Now().Add(60 * time.Second); !strings.Contains(watched.String(), `"state":"idle"`); {
		if time.Now().After(deadline) {
			t.Fatalf("nobody streams any more, and --watch does not show it:\n%s", watched.String())
		}
		read()
	}
	if code := endWatch(); code != exitcode.OK {
		t.Errorf("--watch has ended with %d", code)
	}
	for line := range strings.Lines(watched.String()) {
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
	}
	if got := command(t, environ("off"), "status", "--exit-code"); got.code != exitcode.Failure || got.stderr != "the status is failed\n" {
		t.Errorf("nobody streams: code %d, stderr %q", got.code, got.stderr)
	}
}

func TestStatusMistakes(t *testing.T) {
	t.Parallel()
	environ := []string{"DATABASE_URL=postgres://nobody@127.0.0.1:1/shop", "OUTBOX_LISTEN=off"}
	for line, want := range map[string]string{
		"status -o yaml":                   `no output format "yaml"; write text or json`,
		"status now":                       `outbox-cdc status takes no arguments, and got ["now"]; see outbox-cdc status --help`,
		"status --interval 5s":             "--interval is for --watch",
		"status --watch --interval 10ms":   "--interval 10ms is less than 200ms",
		"status --watch --exit-code":       "--exit-code is not for --watch, which does not end by itself",
		"status --watch --interval=banana": `invalid argument "banana" for "--interval" flag: time: invalid duration "banana"; see outbox-cdc status --help`,
	} {
		got := command(t, environ, strings.Fields(line)...)
		if got.code != exitcode.Usage || got.stdout != "" || got.stderr != want+"\n" {
			t.Errorf("%s: code %d, stdout %q, stderr %q, want %q", line, got.code, got.stdout, got.stderr, want)
		}
	}
	got := command(t, environ, "status")
	if got.code != exitcode.Unavailable || !strings.Contains(got.stdout, ": failed") || !strings.Contains(got.stderr, "127.0.0.1:1") {
		t.Errorf("a server that is down: code %d\n%s\n%s", got.code, got.stdout, got.stderr)
	}
}
