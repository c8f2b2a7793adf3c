package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Program is a program that runs as a child process, and can be started again after it has ended. On Linux it cannot outlive
// this process. Its methods are called by one goroutine at a time.
type Program struct{ process process }

// NewProgram describes a program that runs in dir. Its output is appended to logFile. Start starts it.
func NewProgram(dir, logFile, path string, args ...string) *Program {
	return &Program{process{path: path, args: args, logFile: logFile, signal: syscall.SIGKILL, dir: &directory{path: dir}}}
}

// Start starts it.
func (p *Program) Start(ctx context.Context) error { return p.process.Start(ctx) }

// Done is closed when the process has ended.
func (p *Program) Done() <-chan struct{} { return p.process.done }

// Log is the end of what it has printed.
func (p *Program) Log() string { return p.process.Log() }

// Kill ends the process with SIGKILL, and returns when it has ended.
func (p *Program) Kill() {
	_ = p.process.Signal(syscall.SIGKILL) // an error says that it has ended
	<-p.process.done
}

// Stop sends SIGTERM and waits for the end of the process. The error says that it has failed, or that it still runs when
// ctx ends.
func (p *Program) Stop(ctx context.Context) error {
	if err := p.process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.process.done:
		return p.process.err
	case <-ctx.Done():
		return fmt.Errorf("%s still runs: %w", p.process.path, context.Cause(ctx))
	}
}
