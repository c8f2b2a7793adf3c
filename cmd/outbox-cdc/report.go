package main

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

// reportFormats are the values of the flag -o of the command report.
var reportFormats = []string{"text", "json", "markdown"}

func newReportCommand(environ []string) *cobra.Command {
	var path, since, output string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Report on objectives, worst hours, outages, dead letters and the slowest stage",
		Long: `Report how the connector has done: which share of the events each sink has accepted in time (sla in the configuration), the
error budget of 28 days and how fast it is used up, the last hour against the one before and against the day before, the hours with the most
late events, outages of sinks, dead letters, and the slowest stages. docs/objectives.md has the formulas.

It reads the database with the connector's own login. It changes nothing, and needs no running connector: only the slowest stages are
what the instance that streams says of itself. It goes back 30 days at most, and begins at a full hour of UTC. What cannot be known stands at the end, with the reason.`,
		Example: `  outbox-cdc report --config outbox.yaml
  outbox-cdc report --since 24h -o markdown > report.md
  outbox-cdc report -o json | jq '.sinks[] | {name, met, left: .budget.left}'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ago, err := reportSince(since, time.Now())
			if err != nil {
				return err
			}
			if !slices.Contains(reportFormats, output) {
				return usageError("no output format %q; write %s", output, strings.Join(reportFormats, ", "))
			}
			cfg, err := loadConfig(cmd, path, environ, config.Options{NoSinks: true})
			if err != nil {
				return err
			}
			r, err := admin.ReadReport(cmd.Context(), service.ReportConfig(cfg), ago)
			if err != nil {
				return err
			}
			return writeReport(cmd.OutOrStdout(), &r, output)
		},
	}
	configFlag(cmd, &path)
	flags := cmd.Flags()
	flags.StringVar(&since, "since", "7d", "since this `time`: 2006-01-02T15:04:05Z, 2006-01-02 (UTC), or 24h, 7d ago")
	flags.StringVarP(&output, "output", "o", "text", "text, json or markdown")
	return cmd
}

// reportSince returns how long ago the flag --since says.
func reportSince(text string, now time.Time) (time.Duration, error) {
	at, err := parseTime("since", text, now)
	if err != nil {
		return 0, err
	}
	ago := now.Sub(at)
	switch {
	case at.IsZero():
		return 0, usageError("--since names nothing")
	case ago < time.Hour:
		return 0, usageError("--since %s is less than an hour ago, and a report has whole hours; write 1h or more", text)
	case ago > admin.ReportKept:
		return 0, usageError("--since %s is more than 30 days ago, and the ledger keeps no more; write 30d or less", text)
	}
	return ago, nil
}

func writeReport(w io.Writer, r *admin.Report, format string) error {
	switch format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	case "markdown":
		_, err := io.WriteString(w, reportMarkdown(r))
		return err
	}
	_, err := io.WriteString(w, reportText(r))
	return err
}
