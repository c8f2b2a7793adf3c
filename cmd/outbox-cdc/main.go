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

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// The first signal asks for a clean end. A moment later, as some send it to the process and then to its group, signals are
	// the system's again, and the second one ends the process at once.
	context.AfterFunc(ctx, func() { time.AfterFunc(100*time.Millisecond, stop) })
	os.Exit(int(execute(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)))
}

// execute runs one command and returns its exit code. Standard output belongs to what a command prints and to a stdout
// sink's events; everything else goes to stderr.
func execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) exitcode.Code {
	root := newRootCommand(environ)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if _, logged := errors.AsType[loggedError](err); err != nil && !logged {
		fmt.Fprintln(stderr, err)
	}
	return exitcode.Of(err)
}

// usageError is the error of a command line that cannot be understood.
func usageError(format string, args ...any) error {
	return exitcode.Errorf(exitcode.Usage, format, args...)
}

// loggedError has been told to the log already.
type loggedError struct{ error }

func (e loggedError) Unwrap() error { return e.error }
