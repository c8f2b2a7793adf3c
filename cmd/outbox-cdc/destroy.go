package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newDestroyCommand(environ []string) *cobra.Command {
	var (
		path, dsn   string
		ledger, yes bool
		output      outputFormat
	)
	cmd := &cobra.Command{
		Use:   "destroy",
		Short: "Drop the replication slot, the publication and, if asked, the ledger",
		Long: `Drop the replication slot with its checkpoint, and the publication. --ledger drops the ledger's tables as well: the
delivery log, what is still owed, and every dead letter. The outbox is never touched.

A slot that an instance streams from is refused: stop that first. The sinks of the configuration do not matter. After a
failure it can be run again, and goes on from there. It asks first; off a terminal it needs --yes.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			if !yes {
				if err := needsTerminal(cmd, "use --yes"); err != nil {
					return err
				}
			}
			owner, place := adminDSN(dsn, environ)
			cfg, err := loadConfig(cmd, path, environ, config.Options{DSN: owner, DSNPlace: place, NoSinks: true, SinksOptional: true})
			if err != nil {
				return err
			}
			target, err := tellDatabase(cmd, cfg, owner, place)
			if err != nil {
				return err
			}
			if !yes {
				what := fmt.Sprintf("the replication slot %s and the publication %s", cfg.Source.Slot, cfg.Source.Publication)
				if ledger {
					what += fmt.Sprintf(", and the ledger in schema %s with what is still owed", cfg.Source.LedgerSchema)
				}
				if err := askYes(cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("Drop %s, of %s?", what, target.Place())); err != nil {
					return err
				}
			}
			result, err := service.Destroy(cmd.Context(), cfg, service.DestroyOptions{AdminDSN: owner, Ledger: ledger, WaitingForLock: reportLock(cmd)})
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), result, destroyText(result))
		},
	}
	configFlag(cmd, &path)
	adminFlag(cmd, &dsn)
	output.register(cmd)
	cmd.Flags().BoolVar(&ledger, "ledger", false, "drop the ledger's tables as well")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func destroyText(r service.DestroyResult) string {
	var b strings.Builder
	for _, name := range r.Dropped() {
		fmt.Fprintf(&b, "dropped %s\n", name)
	}
	if b.Len() == 0 {
		return "nothing was there\n"
	}
	return b.String()
}
