// Command outbox-demo shows outbox-cdc at work on a machine that has nothing but Go. It is a program of its own because it
// contains the servers that it shows the connector with, and production needs none of these.
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

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// sameSignal is how soon after the first a second signal means the same: some senders signal the process and then, a moment
// later, its process group.
const sameSignal = 100 * time.Millisecond

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { time.AfterFunc(sameSignal, stop) })
	code := execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(int(code))
}

// execute runs one command and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) exitcode.Code {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return exitcode.Of(err)
}

func usageError(format string, args ...any) error {
	return exitcode.Errorf(exitcode.Usage, format, args...)
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError("%s takes no arguments, and got %q; see %s --help", cmd.CommandPath(), args, cmd.CommandPath())
	}
	return nil
}

// demoSignals returns the two contexts of demo.Run. ctx ends with parent, which ends at the first signal, or when the
// terminal is closed (SIGHUP). work ends at the second signal. A third signal ends the process.
//
// While the demo runs, SIGPIPE is ignored: if the reader of our output goes away, writing returns an error. The signal
// would end the process before the demo has cleaned up.
func demoSignals(parent context.Context) (ctx, work context.Context, release func()) {
	ctx, stop := parent, context.CancelFunc(func() {})
	if !signal.Ignored(syscall.SIGHUP) {
		ctx, stop = signal.NotifyContext(parent, syscall.SIGHUP)
	}
	signal.Ignore(syscall.SIGPIPE)
	work, cut := context.WithCancelCause(context.WithoutCancel(parent))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for first := (time.Time{}); ; {
			select {
			case <-signals:
			case <-work.Done():
				return
			}
			switch {
			case first.IsZero():
				first = time.Now()
			case time.Since(first) > sameSignal:
				signal.Stop(signals)
				cut(errors.New("stopped by a second signal, without waiting for events and without a summary"))
				return
			}
		}
	}()
	return ctx, work, func() {
		signal.Stop(signals)
		signal.Reset(syscall.SIGPIPE)
		stop()
		cut(nil)
	}
}
