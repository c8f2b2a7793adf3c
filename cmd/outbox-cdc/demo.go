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

	"github.com/pyairtable-compose/outbox-cdc/internal/demo"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// maxDemoRate is in events a second. Nobody could read more.
const maxDemoRate = 1000

func newDemoCommand() *cobra.Command {
	var (
		o      demo.Options
		output outputFormat
		logs   logFlags
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show events arriving, with nothing installed",
		Long: `Show events on their way from commits to a consumer, with no server installed: PostgreSQL is found on this machine
or downloaded once (15 MB), Kafka is a fake within this process (kfake), and a small shop writes orders and payments.
Between them runs the ordinary connector, "outbox-cdc init" and "outbox-cdc run", on an ordinary configuration, whose
path is printed. So is a command that inserts an event of your own.

The latency of a line is from PostgreSQL's time of the commit, before it waits for the disk, to the consumer of Kafka.

With --chaos a sink goes away now and then. What the connector makes of it, breaker, parking and catching up, is told in
lines with ~~ in front.

Everything listens on 127.0.0.1, at free ports: several demos can run at once. SIGINT (Ctrl-C) or SIGTERM ends it: what
was committed arrives, everything is compared, and nothing is left but the download cache. A second signal skips the
waiting. The exit code is 1 if anything was lost, repeated or out of order.`,
		Example: `  outbox-cdc demo
  outbox-cdc demo --rate 100 --duration 10s
  outbox-cdc demo --chaos
  outbox-cdc demo --rate 0 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			if o.Rate < 0 || o.Rate > maxDemoRate {
				return usageError("no rate %d; write 0 to %d events a second", o.Rate, maxDemoRate)
			}
			if o.Duration < 0 {
				return usageError("no duration %s; write 0 for no end, or how long, such as 30s", o.Duration)
			}
			if _, err := logs.logger(io.Discard); err != nil {
				return err
			}
			o.JSON = output == "json"
			o.Out, o.Info = cmd.OutOrStdout(), cmd.ErrOrStderr()
			commandOut := o.Out
			if o.JSON {
				commandOut = o.Info
			}
			o.Command = func(ctx context.Context, args ...string) error {
				if args[0] == "run" {
					args = append(args, "--log-level", logs.level, "--log-format", logs.format)
				}
				// The command gets no environment, because variables would prevail over the configuration file.
				if code := execute(ctx, args, nil, commandOut, cmd.ErrOrStderr()); code != exitcode.OK {
					return exitcode.Errorf(code, "outbox-cdc %s: exit code %d", args[0], code) // the command has printed the reason
				}
				return nil
			}
			var err error
			if o.Executable, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			ctx, work, release := demoSignals(cmd.Context())
			defer release()
			return demo.Run(ctx, work, o)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.Rate, "rate", 5, "events a second that the shop writes; 0: only yours")
	flags.BoolVar(&o.Chaos, "chaos", false, "break Redis and the receiver of webhooks now and then, and say what becomes of it")
	flags.DurationVar(&o.Duration, "duration", 0, "how long; 0: until told to end")
	flags.StringVar(&o.PGVersion, "pg-version", "", "major `version` of PostgreSQL, 14 to 18 (default any)")
	flags.StringVar(&o.PGBin, "pg-bin", "", "`directory` of PostgreSQL's programs (default: found, else downloaded)")
	output.register(cmd)
	logs.register(cmd)
	// By default the connector logs only what goes wrong, so that its log does not hide the demo's lines.
	logs.level = "warn"
	flags.Lookup("log-level").DefValue = logs.level
	cmd.AddCommand(newDemoInsertCommand())
	return cmd
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
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for range 2 {
			select {
			case <-signals:
			case <-work.Done():
				return
			}
		}
		signal.Stop(signals)
		cut(errors.New("stopped by a second signal, without waiting for events and without a summary"))
	}()
	return ctx, work, func() {
		signal.Stop(signals)
		signal.Reset(syscall.SIGPIPE)
		stop()
		cut(nil)
	}
}

func newDemoInsertCommand() *cobra.Command {
	var (
		e            outbox.Event
		dsn, payload string
	)
	cmd := &cobra.Command{
		Use:   "insert",
		Short: "Insert an event of your own into the demo's outbox",
		Long:  "Insert one event into event_outbox, for who has no psql. The demo prints the DSN, and a command to paste.",
		Example: `  outbox-cdc demo insert --dsn "$DSN"
  outbox-cdc demo insert --dsn "$DSN" --aggregate-type invoice --aggregate-id 7 --event-type invoice.sent --payload '{"due": "2030-01-31"}'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dsn == "" {
				return usageError("--dsn is missing; the demo prints it when it starts")
			}
			e.Payload = []byte(payload)
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			id, err := demo.Insert(ctx, dsn, e)
			if err != nil && replication.Unreachable(err) {
				return exitcode.With(exitcode.Unavailable, err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "inserted %s\n", id)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dsn, "dsn", "", "the demo's `connection`")
	flags.StringVar(&e.AggregateType, "aggregate-type", "order", "the topic is outbox.event. and this")
	flags.StringVar(&e.AggregateID, "aggregate-id", "42", "the record's key")
	flags.StringVar(&e.EventType, "event-type", "order.created", "the record's header eventType")
	flags.StringVar(&payload, "payload", `{"total": 99}`, "the record's value, a `JSON` text")
	return cmd
}
