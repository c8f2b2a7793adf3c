package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newAdoptCommand(environ []string) *cobra.Command {
	var (
		path   string
		o      service.AdoptOptions
		yes    bool
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Go on with a database that is on another server, or has another name, as the same outbox",
		Long: `Go on with this database as the same outbox. A connector refuses a database that may be a copy of the one before: one
of another cluster, with another oid or name, or one on another timeline that source.dsn reaches by other hosts. After a
failover to another host, a rename, or a pg_upgrade that has kept the slot (17 and later), it is no copy: adopt writes
into the checkpoint that this is its database.

Never adopt a copy beside its original. Both would send the same events to the same destinations. For a copy there is
docs/copies.md.

It says how the database differs, and asks; off a terminal it needs --yes. It refuses while an instance streams. If the
slot is not here, or its positions are not those of the ledger, it changes nothing and says what does help. Where the slot
may have passed events that the ledger does not know, the next start compares the outbox with the ledger.`,
		Example: `  outbox-cdc adopt --dry-run
  outbox-cdc adopt --yes -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			if !yes && !o.DryRun {
				if err := needsTerminal(cmd, "look with --dry-run, then use --yes"); err != nil {
					return err
				}
			}
			cfg, err := loadConfig(cmd, path, environ, config.Options{NoSinks: true, SinksOptional: true})
			if err != nil {
				return err
			}
			target, err := tellDatabase(cmd, cfg, "", "")
			if err != nil {
				return err
			}
			o.WaitingForLock = reportLock(cmd)
			o.Confirm = func(r provision.AdoptResult) error {
				if yes {
					return nil
				}
				fmt.Fprint(cmd.ErrOrStderr(), adoptFound(r))
				return askYes(cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("Go on as the same outbox with %s? If its original still runs, both will deliver.", target.Place()))
			}
			result, err := service.Adopt(cmd.Context(), cfg, o)
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), result, adoptText(result))
		},
	}
	configFlag(cmd, &path)
	output.register(cmd)
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what would be done, and change nothing")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// adoptFound says how the database differs.
func adoptFound(r provision.AdoptResult) string {
	text := fmt.Sprintf("the checkpoint of slot %s belongs to %s\n", r.Slot, clean(r.Differs))
	if r.Compares {
		text += "the next start compares the outbox with the ledger, and delivers what is missing\n"
	}
	return text
}

func adoptText(r provision.AdoptResult) string {
	switch {
	case r.Differs == "":
		return "nothing to do: this is the database of the checkpoint\n"
	case r.DryRun:
		return adoptFound(r) + "would go on with this one as the same outbox\n"
	}
	return adoptFound(r) + "adopted\n"
}
