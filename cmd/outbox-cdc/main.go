// Command outbox-cdc delivers the events of an outbox table. This package holds only its flags, its output, signals and
// exit codes: package service runs the connector, and package admin does what people do with it.
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
	// The first signal asks for a clean end. 100 ms later signals have their usual effect again, so that a second one ends the
	// process at once. The pause is for senders that signal the process and then, a moment later, its process group.
	context.AfterFunc(ctx, func() { time.AfterFunc(100*time.Millisecond, stop) })
	os.Exit(int(execute(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)))
}

// execute runs one command and returns its exit code. Standard output is only for what a command prints and for the events of a
// sink of type stdout. Everything else goes to stderr.
func execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) exitcode.Code {
	root := newRootCommand(environ)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	refuseUnknown(root)
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

// loggedError is an error that was logged already, so execute does not print it again.
type loggedError struct{ error }

func (e loggedError) Unwrap() error { return e.error }
