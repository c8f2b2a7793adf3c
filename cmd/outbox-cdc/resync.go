package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newResyncCommand(environ []string) *cobra.Command {
	var (
		path, dsn, backlog, parked string
		dryRun, yes                bool
		output                     outputFormat
		timeout                    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "resync",
		Short: "Make a lost replication slot anew, and deliver what is missing",
		Long: `Make the replication slot anew when it is gone, invalidated, or was moved or made anew by somebody else, or when the
server is another one. It drops what is left of the old slot, makes the publication if that is missing, and files a
job for each sink. "outbox-cdc run" then works on the jobs: they compare the outbox with the ledger and deliver what
the sink was not given. New events of a sink wait behind its job. "outbox-cdc backlog" shows how far the jobs are.

What the outbox no longer holds cannot be found. Events that were on their way when the slot was lost may come twice.

Stop every instance first; it refuses while one streams. After a failure, or if it was killed, run it again: until it
is done, no instance streams. It asks first; off a terminal it needs --yes.

--backlog none files no jobs: what was written between the end of the old slot and the new one stays undelivered.
--parked says what becomes of what the ledger still owes to sinks, which has to be said on another server than before:
keep delivers it, discard gives it up. For a copy of a database, whose original goes on, both are right:
--backlog none --parked discard.`,
		Example: `  outbox-cdc resync --config outbox.yaml --dry-run
  outbox-cdc resync --config outbox.yaml --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			if backlog != "" && backlog != "none" {
				return usageError("no backlog %q; write none, or leave it away to deliver what is missing", backlog)
			}
			if timeout <= 0 {
				return usageError("no timeout %s; write how long to wait, such as 1m", timeout)
			}
			choice, err := parseParked(parked)
			if err != nil {
				return err
			}
			if !yes && !dryRun {
				if err := needsTerminal(cmd, "use --yes"); err != nil {
					return err
				}
			}
			owner, place := adminDSN(dsn, environ)
			cfg, err := loadConfig(cmd, path, environ, config.Options{DSN: owner, DSNPlace: place, CheckSink: service.CheckSink})
			if err != nil {
				return err
			}
			target, err := tellDatabase(cmd, cfg, owner, place)
			if err != nil {
				return err
			}
			o := service.ResyncOptions{AdminDSN: owner, SkipBacklog: backlog == "none", Parked: choice, Timeout: timeout, Waiting: reportBlockers(cmd)}
			if dryRun || !yes {
				why, steps, err := service.ResyncPlan(cmd.Context(), cfg, o)
				if err != nil {
					return err
				}
				if dryRun {
					return output.write(cmd.OutOrStdout(), map[string]any{"why": why, "steps": steps}, lostText(cfg.Source.Slot, why)+planText(steps))
				}
				fmt.Fprint(cmd.ErrOrStderr(), lostText(cfg.Source.Slot, why)+planText(steps))
				if err := askYes(cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("Make slot %s of %s anew?", cfg.Source.Slot, target.Place())); err != nil {
					return err
				}
			}
			result, err := service.Resync(cmd.Context(), cfg, o)
			for _, w := range result.Warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), result, resyncText(cfg.Source.Slot, result))
		},
	}
	configFlag(cmd, &path)
	adminFlag(cmd, &dsn)
	output.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&backlog, "backlog", "", "none: leave undelivered what the old slot has not sent")
	parkedFlag(cmd, &parked)
	flags.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	flags.BoolVar(&yes, "yes", false, "do not ask")
	flags.DurationVar(&timeout, "timeout", time.Minute, "how long to wait for transactions that hold up the slot, and for the lock of a table")
	return cmd
}

// parkedFlag adds the flag --parked.
func parkedFlag(cmd *cobra.Command, parked *string) {
	cmd.Flags().StringVar(parked, "parked", "", "what becomes of what the ledger still owes to sinks: keep or discard")
}

// reportBlockers returns a function that says on stderr which transactions the slot's creation waits for.
func reportBlockers(cmd *cobra.Command) func([]provision.Blocker) {
	return func(blockers []provision.Blocker) {
		for _, b := range blockers {
			fmt.Fprintf(cmd.ErrOrStderr(), "waiting for the end of %s\n", b)
		}
	}
}

// lostText says why a slot is lost.
func lostText(slot, why string) string {
	if why == "" {
		return fmt.Sprintf("replication slot %s is sound: \"outbox-cdc run\" can go on with it, and nothing has to be made anew\n", slot)
	}
	return fmt.Sprintf("replication slot %s is lost: %s\n", slot, why)
}

func resyncText(slot string, r service.ResyncResult) string {
	var b strings.Builder
	if r.PublicationCreated {
		b.WriteString("created the publication\n")
	}
	if r.OldSlotDropped {
		fmt.Fprintf(&b, "dropped the old replication slot %s\n", slot)
	}
	fmt.Fprintf(&b, "created the replication slot %s; it sends what commits from %s on\n", slot, r.ConsistentPoint)
	discardedText(&b, r.Discarded)
	jobsText(&b, r.Jobs, provision.Estimate{Rows: r.Rows, Exact: r.RowsCounted})
	return b.String()
}

// discardedText says how many parked events were given up.
func discardedText(b *strings.Builder, n int64) {
	if n > 0 {
		fmt.Fprintf(b, "gave up %d parked events\n", n)
	}
}

// jobsText says which jobs were filed, and what works on them.
func jobsText(b *strings.Builder, jobs int, rows provision.Estimate) {
	if jobs > 0 {
		fmt.Fprintf(b, "filed a job for each of %d sinks, which compares %s of the outbox with the ledger; \"outbox-cdc run\" works on them, and \"outbox-cdc backlog\" shows how far they are\n",
			jobs, rows)
	}
}
