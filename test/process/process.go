//go:build linux

// Package process is what the measuring programs, test/bench and test/soak, share: it builds and runs the programs that are
// measured, gives them load, and reads what they take.
package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Child is a process that cannot outlive this one.
type Child struct {
	Cmd     *exec.Cmd
	Started time.Time
	Done    chan struct{} // closed when it has ended; then the rest is set
	Ended   time.Time
	Err     error

	logFile string
}

// Start starts a program whose stdout and stderr go into a file. The kernel ends a child when the thread that forked
// it ends (Pdeathsig), so that thread stays with it.
func Start(logFile, path string, args ...string) (*Child, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...) //nolint:noctx // it is stopped, not cancelled
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	c := &Child{Cmd: cmd, logFile: logFile, Done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c.Started = time.Now()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.Err = cmd.Wait()
			c.Ended = time.Now()
			close(c.Done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// PID returns the process id.
func (c *Child) PID() int { return c.Cmd.Process.Pid }

// Log returns the last lines that the process printed.
func (c *Child) Log() string {
	data, err := os.ReadFile(c.logFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// Wait waits until the process has ended. It fails if the process failed, or if ctx ends first.
func (c *Child) Wait(ctx context.Context) error {
	select {
	case <-c.Done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if c.Err != nil {
		return fmt.Errorf("%s: %w\n%s", c.Cmd.Path, c.Err, c.Log())
	}
	return nil
}

// Stop sends SIGTERM and waits until the process has ended.
func (c *Child) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("it does not end"))
	defer cancel()
	if err := c.Cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return c.Wait(ctx)
}

// Kill ends the process with SIGKILL if it still runs.
func (c *Child) Kill() {
	_ = c.Cmd.Process.Kill() // an error says that it has ended
	<-c.Done
}

// AwaitListening waits until the process takes connections at addr. If that takes too long it kills the process.
func (c *Child) AwaitListening(ctx context.Context, addr string) error {
	dialer := net.Dialer{}
	for range 500 {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if err := Pause(ctx, 20*time.Millisecond); err != nil {
			c.Kill()
			return err
		}
	}
	c.Kill()
	return fmt.Errorf("%s does not start:\n%s", c.Cmd.Path, c.Log())
}

// Memory reads a size from /proc/pid/status in bytes: VmRSS, or VmHWM, its peak.
func Memory(pid int, which string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, which+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, which)
}

// CPUTime returns the CPU time that a process has used, with all its threads, also those that have ended. /proc/pid/stat
// has the same in ticks, which are too coarse for a run of half a second. The number of the process's clock is computed as
// clock_getcpuclockid(3) does.
func CPUTime(pid int) (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|2, &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// Pause waits for d, or until ctx ends; then its error says why.
func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
