package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

func newPauseCommand(environ []string) *cobra.Command {
	return pauseCommand(environ, "pause", "Deliver nothing to a sink until it is resumed", `Deliver nothing to a sink from now on: its events are parked, in order. It stays so beyond the end of the process, until
"resume". A connector that runs is told at once; what is on the wire is finished. Other sinks, and the slot, go on.`, admin.Pause)
}

func newResumeCommand(environ []string) *cobra.Command {
	return pauseCommand(environ, "resume", "Deliver to a sink that was paused", `Deliver to a sink that was paused again: first what was parked meanwhile, in order. A connector that runs is told at once.`, admin.Resume)
}

func pauseCommand(environ []string, name, short, long string, set func(context.Context, admin.Config, []string) ([]admin.PauseResult, error)) *cobra.Command {
	var (
		path   string
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:               name + " <sink>...",
		Short:             short,
		Long:              long,
		Example:           "  outbox-cdc " + name + " partner --config outbox.yaml",
		ValidArgsFunction: sinkNames(&path, environ),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("say which sink to %s; see %s --help", name, cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(); err != nil {
				return err
			}
			cfg, err := adminConfig(cmd, path, environ)
			if err != nil {
				return err
			}
			result, err := set(cmd.Context(), cfg, args)
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), map[string]any{"sinks": result}, pausedText(result))
		},
	}
	ledgerFlags(cmd, &path)
	output.register(cmd)
	return cmd
}

func pausedText(result []admin.PauseResult) string {
	var b strings.Builder
	for _, p := range result {
		state := "is delivered to"
		if p.Paused {
			state = "is paused"
		}
		already := ""
		if !p.Changed {
			already = ", as it was before"
		}
		if p.Outcome == admin.OutcomeNotConfigured && !p.Paused {
			state = "is not paused"
		}
		fmt.Fprintf(&b, "%s %s%s; %d parked\n", p.Sink, state, already, p.Waiting)
		switch {
		case p.Outcome == admin.OutcomeNotConfigured:
			fmt.Fprintf(&b, "%s is not in this configuration, with which nobody delivers to it\n", p.Sink)
		case p.Outcome == admin.OutcomeNoConnector && !p.Paused:
			fmt.Fprintf(&b, "no connector streams from slot %q now: %s is delivered to when one does\n", p.Slot, p.Sink)
		case p.Paused:
		case p.Condition == "away":
			fmt.Fprintf(&b, "%s is %s\n", p.Sink, awayText(p.SinkNow))
		case p.Condition == "failing", p.Condition == "unreachable":
			fmt.Fprintf(&b, "%s does not accept events at the moment: %s\n", p.Sink, clean(shorten(p.Cause, 200)))
		case p.Rate > 0:
			fmt.Fprintf(&b, "%s is suspect: at most %d events a second are tried again\n", p.Sink, p.Rate)
		}
	}
	return b.String()
}
