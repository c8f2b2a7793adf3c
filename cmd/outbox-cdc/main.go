// Command outbox-cdc delivers the events of an outbox table. What it does is in the packages beside it; here are only
// flags, signals and exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// The first signal asks for a clean end. A moment later, as some send it to the process and then to its group, signals are
	// the system's again, and the second one ends the process at once.
	context.AfterFunc(ctx, func() { time.AfterFunc(100*time.Millisecond, stop) })
	os.Exit(execute(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// execute runs one command and gives its exit code. Standard output belongs to what a command prints and to a stdout
// sink's events; everything else goes to stderr.
func execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	root := newRootCommand(environ)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if _, logged := errors.AsType[loggedError](err); err != nil && !logged {
		fmt.Fprintln(stderr, err)
	}
	return exitCode(err)
}

// exitCode is 0 for no error, what an error says by itself, and 1 for all others.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if coded, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok {
		return coded.ExitCode()
	}
	return 1
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (usageError) ExitCode() int { return 2 }

func (e usageError) Unwrap() error { return e.error }

// loggedError has been told to the log already.
type loggedError struct{ error }

func (e loggedError) Unwrap() error { return e.error }
