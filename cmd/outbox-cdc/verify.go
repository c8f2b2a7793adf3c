package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

// verifyWait is how long "verify" waits until the stream is settled up to the moment at which it began.
const verifyWait = 10 * time.Second

var (
	errMissing   = errors.New("events are missing")
	errUndecided = errors.New("of some events nobody can say yet whether they are missing; try again while a connector streams and keeps up")
)

func newVerifyCommand(environ []string) *cobra.Command {
	var (
		path, since string
		o           admin.VerifyOptions
		output      outputFormat
	)
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the outbox with the ledger, and name what the sinks lack",
		Long: `Compare all rows of the outbox with what the ledger knows, for each sink. An event is missing for a sink if it is owed
to the sink (by the routes, and since the sink exists), the ledger says nothing of what has become of it there, and it
cannot come any more, because the stream is settled beyond it. Nothing is changed.

Events that are too new, or that a backlog job has still to look at, are pending. Events from before the part of the log
that retention has dropped are expired: nobody can know what has become of them.

The exit code is 0 if nothing is missing, 1 if something is, and 75 if that could not be decided for some events, because no
connector streams, or because it is too far behind: they count as pending. It may run beside a connector, and needs no sink.`,
		Example: `  outbox-cdc verify --config outbox.yaml
  outbox-cdc verify --since 7d --limit 1000 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			if o.Limit < 0 {
				return usageError("--limit %d is less than 0", o.Limit)
			}
			var err error
			if o.Since, err = parseTime("since", since, time.Now()); err != nil {
				return err
			}
			cfg, err := loadConfig(cmd, path, environ, config.Options{CheckSink: service.CheckSink})
			if err != nil {
				return err
			}
			if verbose, err := cmd.Flags().GetBool(verboseFlag); err == nil && verbose {
				if _, err := tellDatabase(cmd, cfg, "", ""); err != nil {
					return err
				}
			}
			routing, err := service.Routing(cfg)
			if err != nil {
				return err
			}
			o.Wait = verifyWait
			if isTTY(cmd.ErrOrStderr()) {
				last := ""
				o.Tell = func(step string) {
					if step != last {
						fmt.Fprintf(cmd.ErrOrStderr(), "%s …\n", step)
					}
					last = step
				}
			}
			result, err := admin.Verify(cmd.Context(), service.AdminConfig(cfg), routing, o)
			if err != nil {
				return err
			}
			if err := output.write(cmd.OutOrStdout(), result, verifyText(result)); err != nil {
				return err
			}
			return verifyEnd(result)
		},
	}
	ledgerFlags(cmd, &path)
	output.register(cmd)
	cmd.Flags().StringVar(&since, "since", "", "only events made since this `time`: 2006-01-02T15:04:05Z, 2006-01-02 (UTC), or 90m, 3d ago")
	cmd.Flags().IntVar(&o.Limit, "limit", 20, "how many missing events of each sink to name")
	return cmd
}

// verifyEnd returns the error with which the command ends. What is pending while the comparison could decide is too new, or a job has still
// to look at it: it is on its way.
func verifyEnd(r admin.VerifyResult) error {
	if r.Missing > 0 {
		return exitcode.With(exitcode.Failure, errMissing)
	}
	for _, s := range r.Sinks {
		if !r.Decided && s.Pending > 0 {
			return exitcode.With(exitcode.Undecided, errUndecided)
		}
	}
	return nil
}

func verifyText(r admin.VerifyResult) string {
	var b strings.Builder
	var rows [][]string
	for _, s := range r.Sinks {
		note := ""
		if s.Job {
			note = "a backlog job is not finished"
		}
		rows = append(rows, []string{s.Sink, fmt.Sprint(s.Missing), fmt.Sprint(s.Pending), fmt.Sprint(s.Expired), note})
	}
	b.WriteString(tableText("SINK MISSING PENDING EXPIRED NOTE", rows))
	if !r.Decided {
		why := "the stream is not settled up to the moment at which this began"
		if !r.Streamed {
			why = fmt.Sprintf("no connector streams from slot %q", r.Slot)
		}
		fmt.Fprintf(&b, "\n%s, so what the ledger does not know may still come: it counts as pending\n", why)
	}
	for _, s := range r.Sinks {
		if len(s.Events) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\nmissing for %s: %s\n", s.Sink, s.Events[0].Why)
		rows = nil
		for _, e := range s.Events {
			rows = append(rows, []string{e.ID, e.EventType, aggregateText(e.AggregateType, e.AggregateID), timeText(e.CreatedAt)})
		}
		b.WriteString(tableText("ID TYPE AGGREGATE CREATED", rows))
		if more := s.Missing - int64(len(s.Events)); more > 0 {
			fmt.Fprintf(&b, "and %d more\n", more)
		}
	}
	if r.Missing > 0 {
		b.WriteString("\ndocs/verify.md says how they are delivered after all\n")
	}
	return b.String()
}
