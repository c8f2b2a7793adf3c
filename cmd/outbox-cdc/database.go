package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// tellDatabase says on stderr which database the command works on, and where that was configured. owner is the connection string of
// an owner's login, and place says where the user has written it; both are empty if the configuration's own is used.
func tellDatabase(cmd *cobra.Command, cfg config.Config, owner, place string) (dsn.Target, error) {
	place = cmp.Or(place, cfg.Source.DSNPlace)
	target, err := dsn.TargetOf(cmp.Or(owner, string(cfg.Source.DSN)), place)
	if err != nil { // package config has checked source.dsn, but not the owner's
		return target, exitcode.Errorf(exitcode.Config, "%s: %w", place, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s works on %s\n", cmd.CommandPath(), target)
	return target, nil
}

const verboseFlag = "verbose"

// ledgerFlags adds the flags of a command that works on the ledger: --config, and --verbose, which makes adminConfig tell the database.
func ledgerFlags(cmd *cobra.Command, path *string) {
	configFlag(cmd, path)
	cmd.Flags().BoolP(verboseFlag, "v", false, "say on stderr which database this works on, and where that was configured")
}

// placeText says in a question which database a command changes.
func placeText(text string) string {
	target, err := dsn.TargetOf(text, "")
	if err != nil {
		return "" // package config has checked it
	}
	return " of " + target.Place()
}

// needsTerminal returns a usage error with this remedy if the command cannot ask a person, because its input is no terminal.
func needsTerminal(cmd *cobra.Command, remedy string) error {
	if isTTY(cmd.InOrStdin()) {
		return nil
	}
	return usageError("%s asks before it changes anything, and here is no terminal to ask at; %s", cmd.CommandPath(), remedy)
}
