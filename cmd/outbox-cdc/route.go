package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newRouteCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{Use: "route", Short: "Show where events go"}
	asGroup(cmd)
	cmd.AddCommand(newRouteTestCommand(environ))
	return cmd
}

func newRouteTestCommand(environ []string) *cobra.Command {
	var (
		path   string
		event  outbox.Event
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Say which sinks an event would go to, and under which topic and key",
		Long: `Say which sinks an event with these columns would go to, and under which topic and key. Nothing is connected to.
Columns that are not given are empty. Of a webhook's URL the host is shown, and those parts of the path that are a
column of the event. The others may be secrets.`,
		Example: "  outbox-cdc route test --config outbox.yaml --event-type payment.made --aggregate-type payment --tenant-id acme",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			cfg, err := loadConfig(cmd, path, environ, config.Options{NoDSN: true, CheckSink: service.CheckSink})
			if err != nil {
				return err
			}
			routing, err := service.Routing(cfg)
			if err != nil {
				return err
			}
			targets := routing.Targets(&event)
			return output.write(cmd.OutOrStdout(), map[string]any{"targets": targets}, routeText(targets))
		},
	}
	configFlag(cmd, &path)
	output.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&event.ID, "id", "", "the event's id")
	flags.StringVar(&event.AggregateType, "aggregate-type", "", "the type of its aggregate")
	flags.StringVar(&event.AggregateID, "aggregate-id", "", "the id of its aggregate")
	flags.StringVar(&event.EventType, "event-type", "", "its type")
	flags.IntVar(&event.EventVersion, "event-version", 1, "its version")
	flags.StringVar(&event.TenantID, "tenant-id", "", "its tenant")
	flags.StringVar(&event.CorrelationID, "correlation-id", "", "its correlation id")
	flags.StringVar(&event.CausationID, "causation-id", "", "its causation id")
	return cmd
}

func routeText(targets []admin.Target) string {
	if len(targets) == 0 {
		return "no route: it would be discarded\n"
	}
	var b strings.Builder
	line := func(indent string, t admin.Target) {
		fmt.Fprintf(&b, "%s%s (%s)", indent, t.Sink, t.Type)
		if t.URL != "" {
			fmt.Fprintf(&b, " url %s", t.URL)
		}
		if t.Topic != "" {
			fmt.Fprintf(&b, " topic %s", t.Topic)
		}
		if t.Topic != "" || t.URL != "" {
			fmt.Fprintf(&b, " key %q", t.Key)
		}
		if t.OneTry {
			b.WriteString(", one try")
		}
		b.WriteByte('\n')
	}
	for _, t := range targets {
		line("", t)
		for _, m := range t.Members {
			line("  or ", m)
		}
	}
	return b.String()
}
