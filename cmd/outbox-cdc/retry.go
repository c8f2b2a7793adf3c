package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

func newRetryCommand(environ []string) *cobra.Command {
	var (
		path   string
		all    bool
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "retry <sink>...",
		Short: "Ask a sink now, and try its parked events again",
		Long: `Ask a sink now whether it is back, also while its breaker is open, and make its parked events due that wait for their next
attempt. No attempt is counted for it. A connector that runs is told at once. Of a sink that is suspect because it
refuses everything, events are tried at its limited rate. A paused sink stays paused: resume it.

Dead letters stay what they are: see "dlq retry".`,
		Example: `  outbox-cdc retry partner --config outbox.yaml
  outbox-cdc retry --all`,
		ValidArgsFunction: sinkNames(&path, environ),
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && !all:
				return usageError("say which sink to retry, or write --all; see %s --help", cmd.CommandPath())
			case len(args) > 0 && all:
				return usageError("--all and the names of sinks exclude each other")
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
			bar := &progress{w: cmd.ErrOrStderr()}
			result, err := admin.RetryNow(cmd.Context(), cfg, admin.RetryNowOptions{Sinks: args, Progress: bar.show})
			if err != nil {
				bar.clear()
				return err
			}
			return output.write(cmd.OutOrStdout(), result, retryText(result))
		},
	}
	ledgerFlags(cmd, &path)
	output.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every sink of the connector")
	return cmd
}

func retryText(r admin.RetryNowResult) string {
	var b strings.Builder
	quiet := 0 // sinks that nobody asks
	for _, s := range r.Sinks {
		rows := fmt.Sprintf("%d parked, of which %d were not due yet", s.Parked, s.MadeDue)
		if s.Parked == 0 {
			rows = "nothing is parked"
		}
		if s.Outcome == admin.OutcomeNotConfigured {
			quiet++
			fmt.Fprintf(&b, "%s is not in this configuration, with which nobody asks it; %s\n", s.Sink, rows)
			continue
		}
		if s.Paused {
			quiet++
			fmt.Fprintf(&b, "%s is paused: nothing is tried until outbox-cdc resume %s; %d parked\n", s.Sink, s.Sink, s.Parked)
			continue
		}
		switch s.Outcome {
		case admin.OutcomeNoConnector:
			fmt.Fprintf(&b, "%s: %s\n", s.Sink, rows)
		case admin.OutcomeAnswered:
			fmt.Fprintf(&b, "%s answers again%s; %s\n", s.Sink, rateText(s.SinkNow), rows)
		case admin.OutcomeAway:
			fmt.Fprintf(&b, "%s was asked, and is still %s; %s\n", s.Sink, awayText(s.SinkNow), rows)
		case admin.OutcomeNoAnswer:
			fmt.Fprintf(&b, "%s was told to ask, and nothing has come of it yet: it is %s; %s\n", s.Sink, awayText(s.SinkNow), rows)
		default:
			fmt.Fprintf(&b, "%s is asked now%s; %s\n", s.Sink, rateText(s.SinkNow), rows)
		}
	}
	if !r.Streaming && quiet < len(r.Sinks) {
		fmt.Fprintf(&b, "no connector streams from slot %q now: sinks are asked when one does\n", r.Slot)
	}
	return b.String()
}

// rateText says that a sink is suspect, if it is.
func rateText(s admin.SinkNow) string {
	if s.Rate == 0 {
		return ""
	}
	return fmt.Sprintf(", but is suspect: at most %d events a second are tried again", s.Rate)
}

// awayText says that a sink is away, since when, why, and when it is asked next.
func awayText(s admin.SinkNow) string {
	text := s.Condition + " since " + timeText(s.Since) // away, failing or unreachable
	if s.Cause != "" {
		text += " (" + clean(shorten(s.Cause, 200)) + ")"
	}
	if s.AsksAt != nil {
		text += ", and is asked next at " + timeText(s.AsksAt)
	}
	return text
}
