package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

func newMonitoringCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "monitoring",
		Short: "Print the dashboard for Grafana, the alert rules for Prometheus, or what each metric is",
	}
	asGroup(cmd)
	cmd.AddCommand(
		newPrintCommand(environ, "dashboard", &cobra.Command{
			Short: "Print the dashboard for Grafana",
			Long: `Print the dashboard for Grafana as JSON. It can be provisioned as it is: put it into a directory of a provider of
dashboards. The HTTP API of Grafana wants it wrapped, as the example does. Nothing is connected to.`,
			Example: `  outbox-cdc monitoring dashboard > /var/lib/grafana/dashboards/outbox-monitoring.json
  outbox-cdc monitoring dashboard | jq '{dashboard: ., overwrite: true}' |
    curl -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d @- http://grafana:3000/api/dashboards/db`,
		}, monitoring.WriteDashboard),
		newPrintCommand(environ, "alerts", &cobra.Command{
			Short: "Print the alert rules for Prometheus",
			Long: `Print the alert rules for Prometheus, with the recording rules that they need, as one file. Its name belongs into rule_files of
prometheus.yml. docs/operations.md has a runbook for each alert. Nothing is connected to.`,
			Example: `  outbox-cdc monitoring alerts > /etc/prometheus/rules/outbox-alerts.yml
  outbox-cdc monitoring alerts --prefix orders_outbox_ | promtool check rules`,
		}, monitoring.WriteRules),
		newPrintCommand(environ, "metrics", &cobra.Command{
			Short:   "Print what each metric is, and which values are worth a look",
			Long:    "Print what each metric is, and which values are worth a look, as a page of Markdown. Nothing is connected to.",
			Example: "  outbox-cdc monitoring metrics --prefix orders_outbox_ > metrics.md",
		}, monitoring.WriteMetricsPage),
	)
	return cmd
}

// newPrintCommand makes a command of cmd that prints a text about the metrics whose names begin with a prefix.
func newPrintCommand(environ []string, name string, cmd *cobra.Command, write func(w io.Writer, prefix string) error) *cobra.Command {
	var path, prefix string
	cmd.Use, cmd.Args = name, noArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		prefix, err := metricsPrefix(cmd, path, environ, prefix)
		if err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), prefix)
	}
	configFlag(cmd, &path)
	cmd.Flags().Lookup("config").Usage = "configuration `file` that has metrics.prefix" // nothing else of it is used
	cmd.Flags().StringVar(&prefix, prefixFlag, config.Default().Metrics.Prefix, "how the names of the metrics begin, instead of metrics.prefix")
	return cmd
}

const prefixFlag = "prefix"

// metricsPrefix returns how the names of the metrics begin: as the flag says, or else the configuration.
func metricsPrefix(cmd *cobra.Command, path string, environ []string, prefix string) (string, error) {
	if path != "" && !cmd.Flags().Changed(prefixFlag) {
		// Whoever makes a dashboard may know nothing of the database, and where the sinks are has no part in it.
		cfg, err := loadConfig(cmd, path, environ, config.Options{NoDSN: true, NoSinks: true, SinksOptional: true})
		return cfg.Metrics.Prefix, err
	}
	if err := config.CheckMetricsPrefix(prefix); err != nil {
		return "", exitcode.With(exitcode.Config, fmt.Errorf("--%s: %w", prefixFlag, err))
	}
	return prefix, nil
}
