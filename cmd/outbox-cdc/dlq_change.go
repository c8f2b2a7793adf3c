package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

// changeHelp holds the texts of the commands that change rows. A command with a question asks it before it changes anything.
var changeHelp = map[admin.Action]struct{ short, long, example, question string }{
	admin.Retry: {
		short: "Try dead letters again",
		long: `Make dead letters due again, with no try counted. A connector that runs delivers them at once. Where the aggregate went on
meanwhile, the event comes after later ones of it.`,
		example: `  outbox-cdc dlq retry --id 0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f
  outbox-cdc dlq retry --sink partner --error 'status 400' --rate 100 --dry-run`,
	},
	admin.Discard: {
		short: "Delete dead letters",
		long: `Delete dead letters, payload included. Each leaves a row in the log that says by whom and why. The outbox is not touched.
Asks first; off a terminal it needs --yes.`,
		example: `  outbox-cdc dlq discard --sink none --reason 'test data' --yes
  outbox-cdc dlq discard --aggregate order/42 --until 2026-01-31`,
		question: "Delete %s for good?",
	},
	admin.Kill: {
		short: "Give up on events that wait",
		long: `Make dead letters of events that are parked: they are tried no more, and what waits behind them goes on, unless
delivery.on_dead_letter is block. Asks first; off a terminal it needs --yes.`,
		example:  `  outbox-cdc dlq kill --id 0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f --reason 'the account is closed'`,
		question: "Make dead letters of %s?",
	},
}

func newDLQChangeCommand(environ []string, action admin.Action) *cobra.Command {
	var (
		path     string
		filter   filterFlags
		o        admin.ChangeOptions
		all, yes bool
		output   outputFormat
		help     = changeHelp[action]
		asks     = help.question != ""
	)
	cmd := &cobra.Command{
		Use: string(action), Short: help.short, Long: help.long, Example: help.example, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			var err error
			if o.Filter, err = filter.parse(time.Now()); err != nil {
				return err
			}
			switch {
			case o.Filter.Empty() && !all:
				return usageError("say what to %s, by --id, --sink, --type or another filter, or write --all", action)
			case !o.Filter.Empty() && all:
				return usageError("--all and filters exclude each other")
			case o.Rate < 0:
				return usageError("--rate %d: write rows a second, or 0 for as fast as they go", o.Rate)
			case asks && !yes && !o.DryRun:
				if err := needsTerminal(cmd, "look with --dry-run, then use --yes"); err != nil {
					return err
				}
			}
			cfg, err := adminConfig(cmd, path, environ)
			if err != nil {
				return err
			}
			if asks && !yes {
				o.Confirm = func(total int, sinks []admin.SinkRows) error {
					return askYes(cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf(help.question, rowsText(total, sinks)+placeText(cfg.DSN)))
				}
			}
			if asks {
				o.Reason = reasonText(action, o.Reason)
			}
			bar := &progress{w: cmd.ErrOrStderr()}
			o.Progress = bar.show
			result, err := admin.ChangeParked(cmd.Context(), cfg, action, o)
			if err != nil {
				bar.clear()
				return err
			}
			return output.write(cmd.OutOrStdout(), result, changeText(result))
		},
	}
	ledgerFlags(cmd, &path)
	filter.register(cmd, &path, environ)
	output.register(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&all, "all", false, "all there are, without a filter")
	flags.BoolVar(&o.DryRun, "dry-run", false, "say how many there are, and change nothing")
	flags.IntVar(&o.Rate, "rate", 0, "rows a second at most; 0: as fast as they go")
	if asks {
		flags.BoolVar(&yes, "yes", false, "do not ask")
		flags.StringVar(&o.Reason, "reason", "", "why; it stands in the log")
	}
	return cmd
}

// reasonText says who does this, and why, for the rows of the log.
func reasonText(action admin.Action, why string) string {
	by := "a person"
	if u, err := user.Current(); err == nil && u.Username != "" {
		by = u.Username
	}
	text := action.Past() + " by " + by
	if why != "" {
		text += ": " + why
	}
	return text
}

func rowsText(total int, sinks []admin.SinkRows) string {
	var parts []string
	for _, s := range sinks {
		parts = append(parts, fmt.Sprintf("%d of %s", s.Rows, s.Sink))
	}
	noun := "events"
	if total == 1 {
		noun = "event"
	}
	return fmt.Sprintf("%d %s (%s)", total, noun, strings.Join(parts, ", "))
}

func changeText(r admin.ChangeResult) string {
	var b strings.Builder
	if r.DryRun {
		fmt.Fprintf(&b, "would %s %s\n", r.Action, rowsText(r.Matched, r.Sinks))
	} else {
		fmt.Fprintf(&b, "%s: %s\n", r.Action.Past(), rowsText(r.Changed, r.Sinks))
	}
	if r.Meanwhile > 0 {
		fmt.Fprintf(&b, "%d of these had changed meanwhile, and were left\n", r.Meanwhile)
	}
	if r.Left > 0 {
		fmt.Fprintf(&b, "%d of no sink were left: they are no valid events, and cannot be retried\n", r.Left)
	}
	for _, s := range r.Sinks {
		if s.Paused && r.Action == admin.Retry {
			fmt.Fprintf(&b, "%s is paused: they wait until outbox-cdc resume %s\n", s.Sink, s.Sink)
		}
	}
	return b.String()
}

// askYes asks a question, and returns an error unless the answer is yes.
func askYes(in io.Reader, out io.Writer, question string) error {
	fmt.Fprintf(out, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(in).ReadString('\n') // an error, such as the end of the input, is not yes
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was changed")
}

// isTTY reports whether a stream leads to a terminal, so that a person can answer.
func isTTY(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress shows a progress bar if w leads to a terminal, and nothing otherwise.
type progress struct {
	w   io.Writer
	bar *progressbar.ProgressBar
}

func (p *progress) show(done, total int) {
	if !isTTY(p.w) {
		return
	}
	if p.bar == nil {
		p.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(p.w), progressbar.OptionShowCount(), progressbar.OptionShowIts(),
			progressbar.OptionSetItsString("rows"), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
	}
	_ = p.bar.Set(done) // if the bar cannot be drawn, the work goes on all the same
}

// clear removes the bar, so that an error can be printed in its place.
func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
