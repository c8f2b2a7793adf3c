//go:build !containers

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// If this variable is set, the test binary behaves like outbox-cdc, so that a test can send signals to it.
const asCommand = "OUTBOX_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(pgtest.Main(m))
}

func TestDemoUsageErrors(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"demo now":                `outbox-cdc demo takes no arguments, and got ["now"]; see outbox-cdc demo --help`,
		"demo --rate -1":          `no rate -1; write 0 to 1000 events a second`,
		"demo --duration -1s":     `no duration -1s; write 0 for no end, or how long, such as 30s`,
		"demo -o xml":             `no output format "xml"; write text or json`,
		"demo --log-level loud":   `no log level "loud"; write debug, info, warn or error`,
		"demo insert":             `--dsn is missing; the demo prints it when it starts`,
		"demo insert --dsn a now": `outbox-cdc demo insert takes no arguments, and got ["now"]; see outbox-cdc demo insert --help`,
	} {
		got := command(t, nil, strings.Fields(line)...)
		if got.code != 2 || got.stdout != "" || got.stderr != want+"\n" {
			t.Errorf("%s: code %d, stdout %q, stderr %q, want 2 and %q", line, got.code, got.stdout, got.stderr, want)
		}
	}
}

func TestDemoInsertWithoutDemo(t *testing.T) {
	t.Parallel()
	got := command(t, nil, "demo", "insert", "--dsn", "postgres://postgres:canary@127.0.0.1:1/shop")
	if got.code != exitcode.Unavailable || !strings.Contains(got.stderr, "is the demo still running?") || strings.Contains(got.stderr, "canary") {
		t.Errorf("code %d, stderr %q", got.code, got.stderr)
	}
}

func TestDemoWithoutPostgres(t *testing.T) {
	t.Parallel()
	got := command(t, nil, "demo", "--pg-bin", t.TempDir())
	if got.code != 1 || !strings.Contains(got.stderr, "start PostgreSQL: ") || !strings.Contains(got.stderr, "--pg-bin") {
		t.Errorf("code %d, stderr %q", got.code, got.stderr)
	}
}

// Two demos run at the same time, one with psql and one without. In each, an event of a person arrives. Neither leaves
// anything behind.
func TestDemo(t *testing.T) {
	t.Parallel()
	for _, m := range []machine{{psql: true}, {psql: false}} {
		t.Run(fmt.Sprintf("psql=%t", m.psql), func(t *testing.T) {
			t.Parallel()
			seeEventsArrive(t, m)
		})
	}
}

// seeEventsArrive runs a demo and does in it what a person does.
func seeEventsArrive(t *testing.T, m machine) {
	d := startDemo(t, m, "demo", "--rate", "50", "--log-format", "json")
	match := d.await(t, `^health (http://\S+/readyz), metrics (http://\S+/metrics)$`)
	for _, url := range match[1:] {
		if response, err := http.Get(url); err != nil || response.StatusCode != http.StatusOK {
			t.Errorf("%s: %v, %v", url, response, err)
		} else {
			response.Body.Close()
		}
	}
	addr := d.await(t, `^DSN +postgres://[^@]+@([^/]+)/`)[1]
	paste := d.await(t, `^  (\S+ .*event_outbox .*|\S+ demo insert .*)$`)[1]
	if strings.HasPrefix(paste, "psql ") != m.psql {
		t.Errorf("with psql %t it offers %s", m.psql, paste)
	}
	d.await(t, `^   \d.* ms  outbox\.event\.order +1001 +order\.created `) // the shop's

	d.paste(t, paste)
	d.await(t, `^>> .* ms  outbox\.event\.order +42 +order\.created +\S{36} \{"total": 99\}$`)
	// In another terminal: a topic that does not exist.
	d.paste(t, strings.Join([]string{
		os.Args[0], "demo insert --dsn", "'" + d.dsn + "'", "--aggregate-type invoice --event-type invoice.sent", `--payload '{"due":` + "\n" + `1}'`,
	}, " "))
	d.await(t, `^>> .* ms  outbox\.event\.invoice +42 +invoice\.sent +\S{36} \{"due": 1\}$`)

	d.signal(t, syscall.SIGTERM)
	d.await(t, `events were committed, 2 of them yours, and \d+ arrived: none missing, none twice, in order per aggregate, all in the ledger$`)
	d.await(t, `^rolled back: [1-9]\d* events, of which 0 arrived$`)
	if code := d.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if errors := d.stderr.String(); !regexp.MustCompile(`^outbox-cdc init works on database "shop" on 127\.0\.0\.1:\d+ as user "postgres" \(.*\)\n$`).MatchString(errors) {
		t.Errorf("stderr: %s", errors)
	}
	d.nothingLeft(t, addr)
}

// If a sink goes away, its events are parked. They arrive when it is back, and the summary finds nothing missing.
func TestDemoChaos(t *testing.T) {
	t.Parallel()
	d := startDemo(t, machine{psql: true}, "demo", "--rate", "20", "--chaos")
	for _, said := range []string{
		`^~~ chaos: Redis goes away$`, `^~~ stream: parked: `, `^~~ stream: left alone since .*breaker open`, `^~~ chaos: Redis is back$`,
		`^~~ stream: caught up, `,
	} {
		d.await(t, said)
	}
	d.signal(t, syscall.SIGTERM)
	d.await(t, `none missing, none twice, in order per aggregate, all in the ledger$`)
	if code := d.wait(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, d.stderr.String())
	}
	d.nothingLeft(t, "")
}

func TestDemoForPrograms(t *testing.T) {
	t.Parallel()
	d := startDemo(t, machine{psql: true}, "demo", "--rate", "100", "--duration", "1s", "-o", "json")
	events := 0
	for line := range d.lines {
		var got struct {
			Topic, Key, ID, Payload string
			Summary                 *struct{ Arrived, Missing int }
		}
		switch err := json.Unmarshal([]byte(line), &got); {
		case err != nil:
			t.Errorf("%q: %v", line, err)
		case got.Summary == nil:
			events++
			if !strings.HasPrefix(got.Topic, "outbox.event.") || got.Key == "" || got.ID == "" || !json.Valid([]byte(got.Payload)) {
				t.Errorf("event %q", line)
			}
		case got.Summary.Arrived != events || events == 0 || got.Summary.Missing != 0:
			t.Errorf("%d events, and %s", events, line)
		}
	}
	if code := d.wait(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, d.stderr.String())
	}
	d.nothingLeft(t, "")
}

// The demo cleans up, however it is ended.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	early := startDemo(t, machine{psql: true}, "demo")
	early.await(t, `^PostgreSQL \S+ of `)
	early.signal(t, syscall.SIGINT)
	if code := early.wait(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, early.stderr.String())
	}
	early.nothingLeft(t, "")

	// The reader of the output goes away, as head does.
	broken := startDemo(t, machine{psql: true}, "demo", "--rate", "100")
	broken.await(t, `^   \d`)
	broken.stdout.Close()
	if code := broken.wait(t); code != 1 || !strings.Contains(broken.stderr.String(), "broken pipe") {
		t.Errorf("exit code %d, stderr %q", code, broken.stderr.String())
	}
	broken.nothingLeft(t, "")

	// A person has locked a table, which holds up the last transaction of the demo until a second signal.
	held := startDemo(t, machine{psql: true}, "demo", "--rate", "100")
	held.await(t, `^   \d`)
	conn, err := pgx.Connect(t.Context(), held.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "begin; lock table orders"); err != nil {
		t.Fatal(err)
	}
	for waiting := false; !waiting; {
		const ask = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and wait_event = 'relation')"
		if err := conn.QueryRow(t.Context(), ask).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	held.signal(t, syscall.SIGINT)
	held.signal(t, syscall.SIGTERM)
	if code := held.wait(t); code != 1 || !strings.Contains(held.stderr.String(), "second signal") {
		t.Errorf("exit code %d, stderr %q\n%s", code, held.stderr.String(), strings.Join(held.seen, "\n"))
	}
	held.nothingLeft(t, "")
}

// runningDemo is a demo in a process of its own, with its own directory for temporary files.
type runningDemo struct {
	cmd    *exec.Cmd
	stdout io.Closer
	lines  chan string
	seen   []string
	stderr bytes.Buffer
	dir    string
	dsn    string
}

const demoPatience = 90 * time.Second

// machine says what a demo finds on the machine on which it runs.
type machine struct{ psql bool }

func startDemo(t *testing.T, m machine, args ...string) *runningDemo {
	t.Helper()
	d := &runningDemo{lines: make(chan string)}
	// The user of the server must be able to enter the directory. The path of a socket has at most 107 bytes; with
	// t.TempDir it would be longer.
	var err error
	if d.dir, err = os.MkdirTemp("", "demo-test-"); err != nil { //nolint:usetesting // see above
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d.dir) })
	if err := os.Chmod(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command(os.Args[0], args...)
	d.cmd.Env = append(os.Environ(), asCommand+"=1", "TMPDIR="+d.dir)
	if !m.psql {
		d.cmd.Env = append(d.cmd.Env, "PATH="+d.dir)
	}
	d.cmd.Stderr = &d.stderr
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.stdout = stdout
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	go func() {
		defer close(d.lines)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			select {
			case d.lines <- lines.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return d
}

// await reads lines until one matches.
func (d *runningDemo) await(t *testing.T, pattern string) []string {
	t.Helper()
	wanted := regexp.MustCompile(pattern)
	deadline := time.After(demoPatience)
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				t.Fatalf("it ended without a line that matches %s:\n%s\nstderr: %s", pattern, strings.Join(d.seen, "\n"), d.stderr.String())
			}
			d.seen = append(d.seen, line)
			if dsn, ok := strings.CutPrefix(line, "DSN"); ok {
				d.dsn = strings.TrimSpace(dsn)
			}
			if match := wanted.FindStringSubmatch(line); match != nil {
				return match
			}
		case <-deadline:
			t.Fatalf("no line that matches %s within %s:\n%s", pattern, demoPatience, strings.Join(d.seen, "\n"))
		}
	}
}

// paste runs a command, as a person does in another terminal.
func (d *runningDemo) paste(t *testing.T, line string) {
	t.Helper()
	shell := exec.Command("sh", "-c", line)
	shell.Env = append(os.Environ(), asCommand+"=1")
	if out, err := shell.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

func (d *runningDemo) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// wait reads the rest of the output and returns the exit code.
func (d *runningDemo) wait(t *testing.T) int {
	t.Helper()
	stuck := time.AfterFunc(demoPatience, func() { _ = d.cmd.Process.Signal(syscall.SIGABRT) }) // its goroutines go to stderr
	defer stuck.Stop()
	for line := range d.lines {
		d.seen = append(d.seen, line)
	}
	err := d.cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return d.cmd.ProcessState.ExitCode()
}

func (d *runningDemo) nothingLeft(t *testing.T, addr string) {
	t.Helper()
	if left, err := os.ReadDir(d.dir); err != nil || len(left) > 0 {
		t.Errorf("files left: %v (%v)", left, err)
	}
	if addr != "" {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Errorf("something listens on %s", addr)
		}
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline") // none elsewhere than on Linux
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(d.dir)) {
			t.Errorf("process left: %q", line)
		}
	}
}
