package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
	"github.com/pyairtable-compose/outbox-cdc/internal/demo"
)

// maxRate is in events a second. Nobody could read more.
const maxRate = 1000

func newRootCommand() *cobra.Command {
	var (
		o     demo.Options
		chaos string
		form  string
	)
	cmd := &cobra.Command{
		Use:   "outbox-demo",
		Short: "Show events arriving, with nothing installed",
		Long: `Show events on their way from commits to three destinations, with no server installed. PostgreSQL is found on this
machine or downloaded once (15 MB). Kafka and Redis are fakes within this process, and so is a receiver of webhooks.
A small shop writes orders and payments. Between them runs the ordinary connector, as a process of its own, on an
ordinary configuration, whose path is printed. So is a command that inserts an event of your own.

Each line is an event as a consumer of Kafka gets it. The time on it is from PostgreSQL's time of the commit, before it
waits for the disk, to that consumer.

With --chaos things break in turn: Redis, the receiver of webhooks, Kafka, the connector (kill -9) and PostgreSQL (a
crash). What becomes of the events is told in lines that begin with ~~. Give names to choose: --chaos=kafka,connector.

Everything listens on 127.0.0.1, at free ports: several demos can run at once. SIGINT (Ctrl-C) or SIGTERM ends it: what
was committed arrives, outbox, ledger and destinations are compared, and nothing is left but the download cache. A
second signal skips the waiting. The exit code is 1 if anything was lost, repeated without a kill, or out of order.

Colours are for terminals only; NO_COLOR=1 switches them off.`,
		Example: `  outbox-demo
  outbox-demo --chaos
  outbox-demo --chaos=connector,postgres --outage 10s
  outbox-demo --rate 100 --duration 10s
  outbox-demo --rate 0 -o json`,
		Version:       buildinfo.Read().Version,
		Args:          rootArgs,
		SilenceErrors: true, // execute prints the error, once
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Chaos, err = parseChaos(chaos); err != nil {
				return err
			}
			switch {
			case form != "text" && form != "json":
				return usageError("no output format %q; write text or json", form)
			case o.Rate < 0 || o.Rate > maxRate:
				return usageError("no rate %d; write 0 to %d events a second", o.Rate, maxRate)
			case o.Duration < 0:
				return usageError("no duration %s; write 0 for no end, or how long, such as 30s", o.Duration)
			case o.Outage <= 0:
				return usageError("no outage %s; write how long each lasts, such as 6s", o.Outage)
			case cmd.Flags().Changed("outage") && chaos == "":
				return usageError("--outage is for --chaos; write --chaos as well")
			}
			o.JSON = form == "json"
			o.Out, o.Info = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if o.Executable, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			o.Connector = []string{o.Executable, connectorCommand, "--config"}
			o.Screen = screenOf(os.Stdout)
			if o.JSON {
				o.Screen = screenOf(os.Stderr)
			}
			ctx, work, release := demoSignals(cmd.Context())
			defer release()
			return demo.Run(ctx, work, o)
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w; see %s --help", err, cmd.CommandPath())
	})
	flags := cmd.Flags()
	flags.IntVar(&o.Rate, "rate", 5, "events a second that the shop writes; 0: only yours")
	flags.StringVar(&chaos, "chaos", "", "break things in turn, and say what becomes of the events: all, or some of "+strings.Join(demo.Breakable(), ","))
	flags.Lookup("chaos").NoOptDefVal = "all"
	flags.DurationVar(&o.Outage, "outage", 6*time.Second, "how long --chaos leaves each thing broken")
	flags.DurationVar(&o.Duration, "duration", 0, "how long; 0: until told to end")
	flags.StringVar(&o.PGVersion, "pg-version", "", "major `version` of PostgreSQL, 14 to 18 (default any)")
	flags.StringVar(&o.PGBin, "pg-bin", "", "`directory` of PostgreSQL's programs (default: found, else downloaded)")
	flags.StringVarP(&form, "output", "o", "text", "text or json")
	if err := complete(cmd); err != nil {
		panic(err) // cannot happen: the flags exist
	}
	cmd.AddCommand(newInsertCommand(), newConnectorCommand())
	return cmd
}

// rootArgs refuses arguments, which cannot be the name of a command.
func rootArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError("outbox-demo has no command %q; see outbox-demo --help", args[0])
	}
	return nil
}

// parseChaos reads the value of --chaos.
func parseChaos(value string) ([]string, error) {
	switch value {
	case "":
		return nil, nil
	case "all":
		return demo.Breakable(), nil
	}
	names := strings.Split(value, ",")
	for _, name := range names {
		if !slices.Contains(demo.Breakable(), name) {
			return nil, usageError("no chaos %q; write all, or some of %s", name, strings.Join(demo.Breakable(), ","))
		}
	}
	return names, nil
}

// complete tells shells which values the flags have.
func complete(cmd *cobra.Command) error {
	errs := []error{cmd.MarkFlagDirname("pg-bin")}
	for flag, values := range map[string][]string{
		"chaos": append([]string{"all"}, demo.Breakable()...), "output": {"text", "json"}, "pg-version": {"14", "15", "16", "17", "18"},
		"rate": nil, "outage": nil, "duration": nil,
	} {
		errs = append(errs, cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
	}
	return errors.Join(errs...)
}

// screenOf describes the terminal that file is, if it is one.
func screenOf(file *os.File) demo.Screen {
	fd := int(file.Fd())
	if !term.IsTerminal(fd) {
		return demo.Screen{}
	}
	return demo.Screen{
		Colours: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		Columns: func() int {
			if width, _, err := term.GetSize(fd); err == nil && width > 0 {
				return width
			}
			return demo.Widest
		},
	}
}
