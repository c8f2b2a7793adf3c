package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// notifySocket is the end of NOTIFY_SOCKET that systemd has.
type notifySocket struct {
	t    *testing.T
	path string

	mu   sync.Mutex
	told []string
}

func newNotifySocket(t *testing.T) *notifySocket {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify") //nolint:usetesting // the path of a socket is at most 107 bytes long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &notifySocket{t: t, path: filepath.Join(dir, "s")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		for b := make([]byte, 4096); ; {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.told = append(s.told, string(b[:n]))
			s.mu.Unlock()
		}
	}()
	return s
}

// all returns what it was told so far.
func (s *notifySocket) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.told)
}

// waits returns when a message that matches has come after the first from messages, and how many there were up to it.
func (s *notifySocket) waits(from int, pattern string) int {
	s.t.Helper()
	is := regexp.MustCompile(`(?s)^` + pattern + `$`)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-tick.C {
		if i := slices.IndexFunc(s.all()[from:], is.MatchString); i >= 0 {
			return from + i + 1
		}
	}
	s.t.Fatalf("no message %q among %q", pattern, s.all()[from:])
	return 0
}

// start runs the binary as a unit with Type=notify and WatchdogSec= does.
func (s *notifySocket) start(binary, configuration string, watchdog time.Duration) *exec.Cmd {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "outbox.yaml")
	if err := os.WriteFile(path, []byte(configuration), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(s.t.Context(), binary, "run", "--init", "--config", path)
	cmd.Env = []string{"NOTIFY_SOCKET=" + s.path, fmt.Sprintf("WATCHDOG_USEC=%d", watchdog.Microseconds()), "HOME=/nonexistent"}
	cmd.Stderr = s.t.Output()
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func (s *notifySocket) signal(cmd *exec.Cmd, sig os.Signal) {
	s.t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// buildCommand builds the binary.
func buildCommand(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "outbox-cdc")
	if text, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return path
}

// TestSystemd reads each message of a life: start, reload, a process that is stuck, and end; and that of a mistake.
func TestSystemd(t *testing.T) {
	t.Parallel()
	binary := buildCommand(t)
	d := pgtest.New(t)
	s := newNotifySocket(t)
	cmd := s.start(binary, fmt.Sprintf("source: {dsn: %q, slot: %s}\nsinks: [{type: stdout}]\nhttp: {listen: 'off'}\n", d.DSN, d.Slot(t)), 300*time.Millisecond)
	n := s.waits(0, "READY=1")
	n = s.waits(n, "STATUS=streaming")
	n = s.waits(n, "WATCHDOG=1")

	s.signal(cmd, syscall.SIGHUP)
	n = s.waits(n, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\n`)
	s.waits(n, "READY=1")

	// A process that does not run sends no pings, and one that runs again does.
	s.signal(cmd, syscall.SIGSTOP)
	n = s.silent()
	s.signal(cmd, syscall.SIGCONT)
	n = s.waits(n, "WATCHDOG=1")

	s.signal(cmd, syscall.SIGTERM)
	n = s.waits(n, `STOPPING=1\nSTATUS=ending.*`)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if slices.Contains(s.all()[n:], "READY=1") {
		t.Errorf("ready again after STOPPING: %q", s.all()[n:])
	}

	mistaken := newNotifySocket(t)
	cmd = mistaken.start(binary, "sinks: [{type: kafak}]\n", time.Minute)
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != int(exitcode.Config) {
		t.Errorf("a mistake: %s, want exit code %d", cmd.ProcessState, exitcode.Config)
	}
	mistaken.waits(0, `STATUS=.*kafak.*`)
	if slices.Contains(mistaken.all(), "READY=1") {
		t.Errorf("a mistake: told %q", mistaken.all())
	}
}

// silent waits until no message has come for longer than three pings take, and returns how many there were.
func (s *notifySocket) silent() int {
	s.t.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n, i := -1, 0; i < 30; i++ {
		if now := len(s.all()); now == n {
			return n
		} else {
			n = now
		}
		<-tick.C
	}
	s.t.Fatalf("a process that is stopped goes on sending: %q", s.all())
	return 0
}

// systemd does not start anew what only a person can mend.
func TestUnitKnowsTheExitCodes(t *testing.T) {
	t.Parallel()
	want := fmt.Sprintf("\nRestartPreventExitStatus=%d %d %d %d\n", exitcode.Usage, exitcode.SlotLost, exitcode.Privilege, exitcode.Config)
	if got := readUnit(t, "outbox-cdc.service"); !strings.Contains(got, want) {
		t.Errorf("the unit lacks %q", want)
	}
}

// The template is the unit with another name of the configuration.
func TestTemplateUnit(t *testing.T) {
	t.Parallel()
	want := strings.NewReplacer(
		"the events of an outbox table", "the events of the outbox %i", "/etc/outbox-cdc/outbox.yaml", "/etc/outbox-cdc/%i.yaml",
		"-/etc/default/outbox-cdc", "-/etc/default/outbox-cdc-%i", "edit outbox-cdc", "edit outbox-cdc@NAME",
		"credentials/outbox-cdc.service", "credentials/outbox-cdc@NAME.service",
	).Replace(readUnit(t, "outbox-cdc.service"))
	if got := readUnit(t, "outbox-cdc@.service"); got != want {
		t.Errorf("outbox-cdc@.service is\n%s\nwant\n%s", got, want)
	}
}

func readUnit(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../deploy/systemd/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
