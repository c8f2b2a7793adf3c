package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

// dryRunRows is how many old rows of the outbox "cleanup --dry-run" looks at. More take longer than a person wants to wait.
const dryRunRows = 1_000_000

func newCleanupCommand(environ []string) *cobra.Command {
	var (
		path         string
		once, dryRun bool
		output       outputFormat
	)
	cmd := &cobra.Command{
		Use:   "cleanup (--once | --dry-run)",
		Short: "Delete what is older than the retention, or say what would be deleted and why the rest stays",
		Long: `Delete rows of the outbox and days of the delivery log that are settled and older than the configured retention
(retention.outbox, retention.ledger). The connector that streams does that all the time, so this is for a look
(--dry-run), and for those who want to wait for the end (--once). It may run beside a connector.

--dry-run deletes nothing. It says what would be deleted, and what stays although it is old enough, and why. It looks at
1,000,000 rows of the outbox at most.

A first SIGINT ends it after the rows that it deletes just then, 1,000 at most. It can be run again. The exit code is 77
if the login of source.dsn lacks a right; the statement that grants it is printed. Dead letters are never deleted by
this: see dlq purge.`,
		Example: `  outbox-cdc cleanup --config outbox.yaml --dry-run
  outbox-cdc cleanup --config outbox.yaml --once -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			switch {
			case once && dryRun:
				return usageError("--once and --dry-run exclude each other")
			case !once && !dryRun:
				return usageError("write --once to delete now what the retention allows, or --dry-run to see what that is")
			}
			cfg, err := loadCleanup(cmd, path, environ)
			if err != nil {
				return err
			}
			if r := service.Retention(cfg); r.Outbox == cleanup.Forever && r.Ledger == cleanup.Forever {
				return output.write(cmd.OutOrStdout(), map[string]any{"deletes": service.Deletes(cfg)}, deletesText(cfg))
			}
			bar := &progress{w: cmd.ErrOrStderr()}
			result, err := admin.Cleanup(cmd.Context(), service.AdminConfig(cfg), admin.CleanupOptions{
				Retention: service.Retention(cfg), DryRun: dryRun, Most: dryRunRows,
				Progress: func(deleted int64) { bar.show(int(deleted), -1) }, // nobody knows how many there are
			})
			bar.clear()
			return writeCleanup(cmd, cfg, result, err, output)
		},
	}
	ledgerFlags(cmd, &path)
	output.register(cmd)
	cmd.Flags().BoolVar(&once, "once", false, "delete now what the retention allows")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be deleted, and why the rest stays; delete nothing")
	return cmd
}

// loadCleanup loads the configuration, which needs no sinks.
func loadCleanup(cmd *cobra.Command, path string, environ []string) (config.Config, error) {
	cfg, err := loadConfig(cmd, path, environ, config.Options{NoSinks: true})
	if err != nil {
		return config.Config{}, err
	}
	if verbose, err := cmd.Flags().GetBool(verboseFlag); err == nil && verbose {
		_, err := tellDatabase(cmd, cfg, "", "")
		return cfg, err
	}
	return cfg, nil
}

var errLacksRight = errors.New("nothing more can be deleted without these rights")

// writeCleanup prints what was deleted, also if an error has ended that.
func writeCleanup(cmd *cobra.Command, cfg config.Config, r admin.CleanupResult, err error, output outputFormat) error {
	if r.BeganAt.IsZero() { // it has not begun
		return err
	}
	if werr := output.write(cmd.OutOrStdout(), r, cleanupText(cfg, r)); werr != nil {
		return errors.Join(err, werr)
	}
	switch {
	case err != nil:
		return err
	case len(r.Grants) > 0 && !r.DryRun:
		return exitcode.With(exitcode.Privilege, errLacksRight)
	}
	return nil
}
