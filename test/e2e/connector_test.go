package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// connector is one instance of "outbox-cdc run", which may be started and ended many times.
type connector struct {
	t      testing.TB
	config string   // file
	env    []string // says it all, instead of the file, where it is set
	listen string
	dir    string // of what it printed
	runs   []*process
}

// process is one life of a connector.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr string // files
	done           chan struct{}
}

// connector makes an instance with an HTTP port of its own. It is not started.
func (w *world) connector() *connector {
	w.t.Helper()
	dir := w.t.TempDir()
	c := &connector{t: w.t, config: filepath.Join(dir, "outbox.yaml"), listen: freeAddress(w.t), dir: dir}
	w.writeConfig(c)
	w.connectors = append(w.connectors, c)
	w.t.Cleanup(c.cleanup)
	return c
}

// streaming starts a connector, and returns when n events were delivered and the slot has passed them.
func (w *world) streaming(n int) *connector {
	w.t.Helper()
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(n)
	w.allPassed(10 * time.Second)
	return c
}

func (c *connector) cleanup() {
	if c.running() {
		c.kill()
	}
	if !c.t.Failed() {
		return
	}
	for i, p := range c.runs {
		if i < len(c.runs)-20 { // TestTorture has a thousand runs, and keeps their logs
			continue
		}
		c.t.Logf("run %d of the connector at %s: %s; the end of its log:\n%s", i+1, c.listen, p.cmd.ProcessState, tail(p.stderr, 30))
	}
}

// start starts it and returns at once.
func (c *connector) start(args ...string) {
	c.t.Helper()
	c.startCommand("run", args...)
}

// startCommand starts a command of the binary and returns at once.
func (c *connector) startCommand(name string, args ...string) {
	c.t.Helper()
	if c.running() {
		c.t.Fatal("the connector runs already")
	}
	n := len(c.runs)
	if c.env == nil {
		args = append([]string{"--config", c.config}, args...)
	}
	p := &process{
		cmd:    exec.Command(shared.binary, append([]string{name}, args...)...),
		stdout: filepath.Join(c.dir, fmt.Sprintf("stdout-%03d", n)),
		stderr: filepath.Join(c.dir, fmt.Sprintf("stderr-%03d", n)),
		done:   make(chan struct{}),
	}
	stdout, err := os.Create(p.stdout)
	if err != nil {
		c.t.Fatal(err)
	}
	defer stdout.Close()
	stderr, err := os.Create(p.stderr)
	if err != nil {
		c.t.Fatal(err)
	}
	defer stderr.Close()
	p.cmd.Stdout, p.cmd.Stderr = stdout, stderr
	p.cmd.Env = append(slices.Clone(c.env), "PATH="+os.Getenv("PATH"), "HOME="+c.dir)
	p.cmd.SysProcAttr = dieWithUs()
	started := make(chan error)
	go func() {
		// The child dies with the thread that forked it, so that thread has to last as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended is in ProcessState
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		c.t.Fatal(err)
	}
	c.runs = append(c.runs, p)
}

func (c *connector) last() *process { return c.runs[len(c.runs)-1] }

func (c *connector) running() bool {
	if len(c.runs) == 0 {
		return false
	}
	select {
	case <-c.last().done:
		return false
	default:
		return true
	}
}

// kill is kill -9.
func (c *connector) kill() {
	c.t.Helper()
	if err := c.last().cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.t.Error(err)
	}
	<-c.last().done
}

// term asks for a clean end and wants exit code 0.
func (c *connector) term() {
	c.t.Helper()
	if err := c.last().cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	c.exits(40*time.Second, 0)
}

// exits waits for its end, and wants this exit code.
func (c *connector) exits(patience time.Duration, code exitcode.Code) {
	c.t.Helper()
	select {
	case <-c.last().done:
	case <-time.After(patience):
		c.t.Fatalf("the connector still runs after %s", patience)
	}
	if got := exitcode.Code(c.last().cmd.ProcessState.ExitCode()); got != code {
		c.t.Fatalf("exit code %d, want %d; the end of its log:\n%s", got, code, tail(c.last().stderr, 5))
	}
}

// health is the answer of /readyz.
type health struct {
	Status     string
	Ready      bool
	Role       string
	Components map[string]struct {
		Status string
		Detail string
		Since  time.Time
	}
	code int
}

// The statuses of /readyz and its components.
const (
	isOK       = "ok"
	isDegraded = "degraded"
	isFailed   = "failed"
)

func (h health) String() string {
	var bad []string
	for name, c := range h.Components {
		if c.Status != isOK {
			bad = append(bad, fmt.Sprintf("%s %s: %s", name, c.Status, c.Detail))
		}
	}
	return fmt.Sprintf("%d %s %s %q", h.code, h.Status, h.Role, bad)
}

func (c *connector) health() (h health, err error) {
	body, code, err := c.get("/readyz")
	if err != nil {
		return h, err
	}
	h.code = code
	if err := json.Unmarshal(body, &h); err != nil {
		return h, fmt.Errorf("/readyz: %w in %s", err, body)
	}
	if h.Ready != (code == http.StatusOK) || h.Ready != (h.Status != isFailed) {
		return h, fmt.Errorf("/readyz says ready=%t and %q with status %d", h.Ready, h.Status, code)
	}
	return h, nil
}

// ready waits until all of it is ok in this role.
func (c *connector) ready(role string) {
	c.t.Helper()
	c.readyWithin(30*time.Second, role)
}

func (c *connector) readyWithin(patience time.Duration, role string) {
	c.t.Helper()
	eventually(c.t, patience, "ready as "+role, func() error {
		if !c.running() {
			c.t.Fatalf("the connector has ended: %s\n%s", c.last().cmd.ProcessState, tail(c.last().stderr, 5))
		}
		h, err := c.health()
		if err != nil {
			return err
		}
		if h.Status != isOK || h.Role != role {
			return fmt.Errorf("/readyz: %s", h)
		}
		return nil
	})
}

// failed waits until /readyz says that a component has failed whose name begins so and whose detail tells all of these.
func (c *connector) failed(component string, tells ...string) {
	c.t.Helper()
	c.isWithin(40*time.Second, isFailed, component, tells...)
}

// degraded waits until /readyz says that a component is degraded whose name begins so and whose detail tells all of these.
func (c *connector) degraded(component string, tells ...string) {
	c.t.Helper()
	c.isWithin(40*time.Second, isDegraded, component, tells...)
}

func (c *connector) isWithin(patience time.Duration, status string, component string, tells ...string) {
	c.t.Helper()
	eventually(c.t, patience, fmt.Sprintf("%s is %s", component, status), func() error {
		h, err := c.health()
		if err != nil {
			return err
		}
		for name, state := range h.Components {
			if state.Status == status && strings.HasPrefix(name, component) && containsAll(state.Detail, tells) {
				return nil
			}
		}
		return fmt.Errorf("/readyz: %s", h)
	})
}

// says wants the log of the last run to hold all of these.
func (c *connector) says(tells ...string) {
	c.t.Helper()
	if text := tail(c.last().stderr, 1000); !containsAll(text, tells) {
		c.t.Errorf("the log lacks some of %q:\n%s", tells, tail(c.last().stderr, 10))
	}
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(part)) {
			return false
		}
	}
	return true
}

// metric is the sum of all series of a metric whose labels hold all of these, such as sink="events".
func (c *connector) metric(name string, labels ...string) float64 {
	c.t.Helper()
	body, code, err := c.get("/metrics")
	if err != nil || code != http.StatusOK {
		c.t.Fatalf("/metrics: %d %v", code, err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(body)) {
		rest, ok := strings.CutPrefix(line, "pyairtable_outbox_"+name)
		if !ok || rest[0] != ' ' && rest[0] != '{' || !containsAll(rest, labels) {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64)
		if err != nil {
			c.t.Fatalf("/metrics: %q: %v", line, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		c.t.Fatalf("/metrics has no %s %v", name, labels)
	}
	return sum
}

func (c *connector) get(path string) (body []byte, code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.listen+path, nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return body, resp.StatusCode, err
}

// client keeps no connection: the process at its other end is killed all the time.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// command runs another command of the binary to its end.
func (c *connector) command(env []string, args ...string) (output string, code exitcode.Code) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.binary, args...)
	cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "HOME="+c.dir)
	out, err := cmd.CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		c.t.Fatal(err)
	}
	return string(out), exitcode.Code(cmd.ProcessState.ExitCode())
}

func tail(file string, lines int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

var (
	addresses     = map[string]bool{}
	addressesLock sync.Mutex
)

// freeAddress is one of 127.0.0.1 that nobody listens on, below the ports that the kernel gives to outgoing
// connections: it has to stay free while its connector is dead.
func freeAddress(t testing.TB) string {
	t.Helper()
	addressesLock.Lock()
	defer addressesLock.Unlock()
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.IntN(10000)))
		if addresses[address] {
			continue
		}
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			addresses[address] = true
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}
