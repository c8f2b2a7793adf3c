package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
)

func newDLQPurgeCommand(environ []string) *cobra.Command {
	var (
		path, olderThan, reason string
		o                       admin.PurgeOptions
		yes                     bool
		output                  outputFormat
	)
	cmd := &cobra.Command{
		Use:   "purge --older-than age",
		Short: "Delete dead letters that died long ago",
		Long: `Delete dead letters that died longer ago than --older-than, payload included. Each leaves a row in the log, as with
dlq discard. Nothing else deletes dead letters: retention.outbox and retention.ledger leave them alone.

The log says when a dead letter died; one that was retried has the time of its last death. If the log of that day is
deleted already (retention.ledger), the time is that at which the event was parked, which may be earlier.

Asks first; off a terminal it needs --yes. It is no failure if there is none.`,
		Example: `  outbox-cdc dlq purge --older-than 30d --dry-run
  outbox-cdc dlq purge --older-than 30d --sink partner,none --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			var err error
			if o.OlderThan, err = purgeAge(olderThan); err != nil {
				return err
			}
			if o.Sinks, err = sinkFlag(cmd, o.Sinks); err != nil {
				return err
			}
			if !yes && !o.DryRun {
				if err := needsTerminal(cmd, "look with --dry-run, then use --yes"); err != nil {
					return err
				}
			}
			cfg, err := adminConfig(cmd, path, environ)
			if err != nil {
				return err
			}
			if !yes {
				o.Confirm = func(r admin.PurgeResult) error {
					return askYes(cmd.InOrStdin(), cmd.ErrOrStderr(), purgeQuestion(r, placeText(cfg.DSN)))
				}
			}
			o.Reason = reasonText(admin.Discard, reason)
			bar := &progress{w: cmd.ErrOrStderr()}
			o.Progress = bar.show
			result, err := admin.PurgeDeadLetters(cmd.Context(), cfg, o)
			if err != nil {
				bar.clear()
				return err
			}
			return output.write(cmd.OutOrStdout(), result, purgeText(result, olderThan))
		},
	}
	ledgerFlags(cmd, &path)
	output.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&olderThan, "older-than", "", "how long ago they must have died: 30d, 1d12h or 90m")
	flags.StringSliceVar(&o.Sinks, "sink", nil, "of these `sinks` only, with commas between; none: what belongs to no sink")
	flags.BoolVar(&o.DryRun, "dry-run", false, "say how many there are, and delete none")
	flags.BoolVar(&yes, "yes", false, "do not ask")
	flags.StringVar(&reason, "reason", "", "why; it stands in the log")
	completeSinks(cmd, &path, environ)
	return cmd
}

// purgeAge returns what --older-than says.
func purgeAge(text string) (time.Duration, error) {
	if text == "" {
		return 0, usageError("say how long ago they must have died, such as --older-than 30d; dlq discard takes other filters")
	}
	age, err := config.ParseAge(text)
	switch {
	case age.Off() && err == nil, err != nil:
		return 0, usageError("--older-than %q is no age; write 30d, 1d12h or 90m", text)
	case age.Duration() == 0:
		return 0, usageError("--older-than %s would delete every dead letter; if you mean that, use dlq discard --all", text)
	}
	return age.Duration(), nil
}

// sinkFlag returns the names that --sink has. A script's variable that is not set must not select all.
func sinkFlag(cmd *cobra.Command, names []string) ([]string, error) {
	if cmd.Flags().Changed("sink") && len(names) == 0 {
		return nil, usageError("--sink names nothing")
	}
	for i, name := range names {
		if names[i] = strings.TrimSpace(name); names[i] == "" {
			return nil, usageError("--sink names nothing")
		}
	}
	return names, nil
}

// purgeQuestion asks before the deletion. There is at least one dead letter.
func purgeQuestion(r admin.PurgeResult, place string) string {
	return fmt.Sprintf("Delete %s%s for good, of which the oldest died at %s UTC?", rowsText(r.Matched, r.Sinks), place, timeText(r.Oldest))
}

func purgeText(r admin.PurgeResult, olderThan string) string {
	if r.Matched+r.Younger == 0 {
		return "no dead letters\n"
	}
	if r.Matched == 0 {
		return fmt.Sprintf("no dead letter is older than %s; %d %s younger\n", olderThan, r.Younger, isOrAre(r.Younger))
	}
	var b strings.Builder
	if r.DryRun {
		fmt.Fprintf(&b, "would delete %s; the oldest died at %s UTC\n", rowsText(r.Matched, r.Sinks), timeText(r.Oldest))
	} else {
		fmt.Fprintf(&b, "deleted: %s\n", rowsText(r.Deleted, r.Sinks))
	}
	if r.Meanwhile > 0 {
		fmt.Fprintf(&b, "%d of these had changed meanwhile, and were left\n", r.Meanwhile)
	}
	if r.ByParkedAt > 0 {
		fmt.Fprintf(&b, "%d of these: the log of the day when they died is deleted already, so they count as dead since they were parked\n", r.ByParkedAt)
	}
	if r.Younger > 0 {
		fmt.Fprintf(&b, "%d %s younger than %s\n", r.Younger, isOrAre(r.Younger), olderThan)
	}
	return b.String()
}

func isOrAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}
