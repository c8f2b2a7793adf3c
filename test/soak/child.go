//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// child is a process that cannot outlive this one.
type child struct {
	cmd     *exec.Cmd
	logFile string
	started time.Time
	done    chan struct{} // closed when it has ended; then the rest is set
	ended   time.Time
	err     error
}

// startChild starts a program whose stdout and stderr go into a file. The kernel ends a child when the thread that forked
// it ends (Pdeathsig), so that thread stays with it.
func startChild(logFile, path string, args ...string) (*child, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...) //nolint:noctx // it is stopped, not cancelled
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	c := &child{cmd: cmd, logFile: logFile, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c.started = time.Now()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			c.ended = time.Now()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// log is the end of what it printed.
func (c *child) log() string {
	data, err := os.ReadFile(c.logFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// wait waits until it has ended, which must be well.
func (c *child) wait(ctx context.Context) error {
	select {
	case <-c.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if c.err != nil {
		return fmt.Errorf("%s: %w\n%s", c.cmd.Path, c.err, c.log())
	}
	return nil
}

// stop asks it to end in good order.
func (c *child) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("it does not end"))
	defer cancel()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return c.wait(ctx)
}

// kill ends it, if it still runs.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // an error says that it has ended
	<-c.done
}
