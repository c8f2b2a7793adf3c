//go:build !containers

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
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
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/demo"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// If this variable is set, the test binary behaves like outbox-demo, so that a test can send signals to it.
const asCommand = "OUTBOX_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(pgtest.Main(m))
}

// outcome is the exit code and the output of a command.
type outcome struct {
	code           exitcode.Code
	stdout, stderr string
}

func command(t *testing.T, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := execute(t.Context(), args, &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"now":                `outbox-demo has no command "now"; see outbox-demo --help`,
		"--rate -1":          `no rate -1; write 0 to 1000 events a second`,
		"--rate many":        `invalid argument "many" for "--rate" flag: strconv.ParseInt: parsing "many": invalid syntax; see outbox-demo --help`,
		"--duration -1s":     `no duration -1s; write 0 for no end, or how long, such as 30s`,
		"--chaos --outage 0": `no outage 0s; write how long each lasts, such as 6s`,
		"--outage 1s":        `--outage is for --chaos; write --chaos as well`,
		"--chaos=redis,disk": `no chaos "disk"; write all, or some of redis,webhooks,kafka,connector,postgres`,
		"-o xml":             `no output format "xml"; write text or json`,
		"insert":             `--dsn is missing; the demo prints it when it starts`,
		"insert --dsn a now": `outbox-demo insert takes no arguments, and got ["now"]; see outbox-demo insert --help`,
	} {
		got := command(t, strings.Fields(line)...)
		if got.code != 2 || got.stdout != "" || got.stderr != want+"\n" {
			t.Errorf("%s: code %d, stdout %q, stderr %q, want 2 and %q", line, got.code, got.stdout, got.stderr, want)
		}
	}
}

func TestHelpAndCompletion(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"--help":                     "outbox-demo --chaos=connector,postgres",
		"insert --help":              `outbox-demo insert --dsn "$DSN"`,
		"--version":                  "outbox-demo version ",
		"completion bash":            "outbox-demo",
		"__complete --chaos=":        "postgres",
		"__complete --output ":       "json",
		"__complete --pg-version ":   "18",
		"__complete insert --dsn= -": "--payload",
	} {
		got := command(t, strings.Split(line, " ")...)
		if got.code != 0 || !strings.Contains(got.stdout, want) {
			t.Errorf("%s: code %d, stderr %q, %q not in:\n%s", line, got.code, got.stderr, want, got.stdout)
		}
	}
	if help := command(t, "--help").stdout; strings.Contains(help, "  connector ") {
		t.Errorf("the command that the demo runs itself by is shown:\n%s", help)
	}
}

func TestInsertWithoutDemo(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string]string{
		"postgres://postgres:canary@127.0.0.1:1/shop": "is the demo still running?",
		"postgres://u:canary%@127.0.0.1:1/db":         "cannot parse",
		"postgres://u:canary/y@127.0.0.1:1/db":        "cannot parse",
		"host=127.0.0.1 port=1 password='canary":      "cannot parse",
	} {
		got := command(t, "insert", "--dsn", dsn)
		if got.code == 0 || !strings.Contains(got.stderr, want) || strings.Contains(got.stderr, "canary") {
			t.Errorf("code %d, stderr %q, want %q", got.code, got.stderr, want)
		}
		if refused := strings.HasSuffix(dsn, "shop"); refused != (got.code == exitcode.Unavailable) {
			t.Errorf("code %d, stderr %q", got.code, got.stderr)
		}
	}
}

func TestWithoutPostgres(t *testing.T) {
	t.Parallel()
	got := command(t, "--pg-bin", t.TempDir())
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
	d := startDemo(t, m, "--rate", "50")
	addr := d.await(t, `^  DSN +postgres://[^@]+@([^/]+)/`)[1]
	for _, what := range []string{"health", "metrics"} {
		url := d.await(t, `^  `+what+` +(http://\S+/\S+)$`)[1]
		if response, err := http.Get(url); err != nil || response.StatusCode != http.StatusOK {
			t.Errorf("%s: %v, %v", url, response, err)
		} else {
			response.Body.Close()
		}
	}
	paste := d.await(t, `^  (\S+ .*\\)$`)[1]
	for !strings.HasSuffix(paste, `}'`) && !strings.HasSuffix(paste, `)"`) {
		paste += "\n" + d.await(t, "^.*$")[0]
	}
	if strings.HasPrefix(paste, "psql ") != m.psql {
		t.Errorf("with psql %t it offers %s", m.psql, paste)
	}
	d.await(t, `^   \d.* ms  order +1001 +order\.created `) // the shop's

	d.paste(t, paste)
	d.await(t, `^>> .* ms  order +42 +order\.created +…\S{6}  \{"total": 99\}$`)
	// In another terminal: a topic that does not exist.
	d.paste(t, strings.Join([]string{
		os.Args[0], "insert --dsn", "'" + d.dsn + "'", "--aggregate-type invoice --event-type invoice.sent", `--payload '{"due":` + "\n" + `1}'`,
	}, " "))
	d.await(t, `^>> .* ms  invoice +42 +invoice\.sent +…\S{6}  \{"due": 1\}$`)

	d.signal(t, syscall.SIGTERM)
	d.await(t, `^  committed +\d+   events in the outbox, 2 of them yours$`)
	d.await(t, `^  rolled back +[1-9]\d*   events that were never committed; 0 of them arrived$`)
	d.await(t, `^Nothing missing, nothing twice, in order per aggregate, all in the ledger\.$`)
	if code := d.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if d.stderr.Len() > 0 {
		t.Errorf("stderr: %s", d.stderr.String())
	}
	d.fits(t, demo.Widest)
	d.nothingLeft(t, addr)
}

// What breaks is told as one story each, and nothing is missing. The outages are so short that each has to last longer until its story is
// complete, as on a busy machine.
func TestDemoChaos(t *testing.T) {
	t.Parallel()
	breaks := []string{"webhooks", "connector"}
	if *everything {
		breaks = demo.Breakable()
	}
	d := startDemo(t, machine{psql: true}, "--rate", "20", "--outage", "100ms", "--chaos="+strings.Join(breaks, ","))
	for _, name := range breaks {
		story := stories[name]
		d.await(t, "^~~ "+story[0])
		for _, said := range append(story[1:len(story):len(story)], "caught up, nothing missing") {
			line := d.await(t, `^~~  *\d+\.\d s  (.*(?:`+said+`|caught up).*)`)[1] // no line of the next outage
			if !regexp.MustCompile(said).MatchString(line) {
				t.Fatalf("the story of %s ends without %q:\n%s", name, said, strings.Join(d.seen, "\n"))
			}
		}
	}
	d.signal(t, syscall.SIGTERM)
	d.await(t, `^Nothing missing, in order per aggregate, all in the ledger\.$`)
	if code := d.wait(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, d.stderr.String())
	}
	d.fits(t, demo.Widest)
	d.nothingLeft(t, "")
}

var everything = flag.Bool("everything", false, "TestDemoChaos breaks all that can be broken")

// stories are lines of each outage.
var stories = map[string][]string{
	"redis":     {`Redis goes away`, `stream is left alone`, `\d+ waits?, parked in PostgreSQL`, `Redis is back`},
	"webhooks":  {`The receiver of webhooks answers 503`, `partner is left alone`, `\d+ waits?, parked`, `the receiver of webhooks is back`},
	"kafka":     {`Kafka is killed`, `events is left alone`, `\d+ waits?, parked`, `Kafka is back`},
	"connector": {`The connector is killed`, `\d+ waits?, in the write-ahead log`, `the connector is started again`},
	"postgres":  {`PostgreSQL is killed`, `/readyz says failed`, `PostgreSQL is back`},
}

func TestDemoForPrograms(t *testing.T) {
	t.Parallel()
	d := startDemo(t, machine{psql: true}, "--rate", "100", "--duration", "1s", "-o", "json")
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
	early := startDemo(t, machine{psql: true})
	early.await(t, `^PostgreSQL \S+ of `)
	early.signal(t, syscall.SIGINT)
	if code := early.wait(t); code != 0 {
		t.Errorf("exit code %d\n%s", code, early.stderr.String())
	}
	early.nothingLeft(t, "")

	// The reader of the output goes away, as head does.
	broken := startDemo(t, machine{psql: true}, "--rate", "100")
	broken.await(t, `^   \d`)
	broken.stdout.Close()
	if code := broken.wait(t); code != 1 || !strings.Contains(broken.stderr.String(), "broken pipe") {
		t.Errorf("exit code %d, stderr %q", code, broken.stderr.String())
	}
	broken.nothingLeft(t, "")

	// A person has locked a table, which holds up the last transaction of the demo until a second signal.
	held := startDemo(t, machine{psql: true}, "--rate", "100")
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
	held.await(t, `^stopping; `)
	<-time.After(2 * sameSignal) // a signal that comes sooner counts as the first
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
	d := newDemo(t, args...)
	if !m.psql {
		d.cmd.Env = append(d.cmd.Env, "PATH="+d.dir)
	}
	d.cmd.Stderr = &d.stderr
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.stdout = stdout
	d.start(t, stdout)
	return d
}

// newDemo is a demo that was not started yet, and goes nowhere with its output.
func newDemo(t *testing.T, args ...string) *runningDemo {
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
	return d
}

// start starts the process, and reads the lines of its output.
func (d *runningDemo) start(t *testing.T, output io.Reader) {
	t.Helper()
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	go func() {
		defer close(d.lines)
		for lines := bufio.NewScanner(output); lines.Scan(); {
			select {
			case d.lines <- lines.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
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
			if dsn, ok := strings.CutPrefix(line, "  DSN"); ok {
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

// fits checks that the output fits a terminal of so many columns and has no colours.
func (d *runningDemo) fits(t *testing.T, columns int) {
	t.Helper()
	for _, line := range d.seen {
		path := strings.Contains(line, d.dir) || strings.Contains(line, os.Args[0]) // these are longer than a person's
		if utf8.RuneCountInString(line) > columns && !path || strings.Contains(line, "\x1b") {
			t.Errorf("%d columns: %q", utf8.RuneCountInString(line), line)
		}
	}
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
