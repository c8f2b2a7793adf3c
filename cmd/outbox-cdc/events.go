package main

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

func newEventsCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{Use: "events", Short: "List events by what became of them, or show one"}
	asGroup(cmd)
	cmd.AddCommand(newEventsListCommand(environ), newEventsShowCommand(environ))
	return cmd
}

func newEventsListCommand(environ []string) *cobra.Command {
	var (
		path, status string
		filter       filterFlags
		page         pageFlags
		output       listFormat
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List events by what became of them",
		Long: `List events by what became of them.

--status parked: what waits, since when, how often it was refused and tried, what for, and until when: its next attempt, an
earlier event of its aggregate, a destination that is away, a paused sink. dead: what was given up on. Both in order of
sink and position.
failed, discarded: tries from the log, the newest first.
delivered, pending, or no status: events of the outbox over all sinks, the newest first; of the last hour, unless --since
or --id says otherwise. If source.table is a table of your own, events named by --id are in the order of their ids, the
highest first. If it has no created_at, all its events are, and --since and --until cannot be used. A read of it that takes
longer than 30 s ends with an error.`,
		Example: `  outbox-cdc events list --status parked --sink partner
  outbox-cdc events list --status failed --since 15m -o json
  outbox-cdc events list --status pending`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFlags(output.check, page.check); err != nil {
				return err
			}
			if status != "" && !slices.Contains(admin.EventStatuses, status) {
				return usageError("no status %q; write %s", status, strings.Join(admin.EventStatuses, ", "))
			}
			f, err := filter.parse(time.Now())
			if err != nil {
				return err
			}
			cfg, err := adminConfig(cmd, path, environ)
			if err != nil {
				return err
			}
			found, err := admin.Events(cmd.Context(), cfg, admin.EventsQuery{Status: status, Filter: f, Limit: page.limit, After: page.after})
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), found, pageText(found, status))
		},
	}
	ledgerFlags(cmd, &path)
	filter.register(cmd, &path, environ)
	page.register(cmd)
	output.register(cmd)
	cmd.Flags().StringVar(&status, "status", "", strings.Join(admin.EventStatuses, ", "))
	err := cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(admin.EventStatuses, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // cannot happen: the flag exists
	}
	return cmd
}

func pageText(p admin.EventsPage, status string) string {
	var text string
	switch {
	case len(p.Parked) > 0 && status == "dead":
		text = deadTable(p.Parked)
	case len(p.Parked) > 0:
		text = parkedTable(p.Parked)
	case len(p.Tries) > 0:
		text = triesTable(p.Tries, errorWidth)
	case len(p.Events) > 0:
		text = eventsTable(p.Events)
	default:
		return "no events\n"
	}
	return text + nextText(p.Next)
}

func newEventsShowCommand(environ []string) *cobra.Command {
	var (
		path    string
		payload bool
		output  listFormat
	)
	cmd := &cobra.Command{
		Use:     "show <event id>",
		Short:   "Show what became of one event: what sinks are owed of it, and every try",
		Example: "  outbox-cdc events show 0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("%s takes the id of one event; see %s --help", cmd.CommandPath(), cmd.CommandPath())
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
			d, err := admin.ShowEvent(cmd.Context(), cfg, admin.EventDetailsQuery{ID: args[0], Payload: payload})
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), d, eventText(d))
		},
	}
	ledgerFlags(cmd, &path)
	payloadFlag(cmd, &payload)
	output.register(cmd)
	return cmd
}

func eventText(d admin.EventDetails) string {
	var parts []string
	if d.Event != nil {
		parts = append(parts, eventsTable([]admin.Event{*d.Event}))
	}
	if d.EventError != "" {
		parts = append(parts, "The outbox could not be read: "+clean(d.EventError)+"\n")
	}
	for _, p := range d.Parked {
		parts = append(parts, parkedDetails(p))
	}
	if len(d.Log) > 0 {
		parts = append(parts, triesTable(d.Log, wholeError))
	}
	return strings.Join(parts, "\n")
}
