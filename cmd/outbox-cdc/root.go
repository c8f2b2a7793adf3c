package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// newRootCommand makes all commands. They read variables from environ only, never from the process's environment.
func newRootCommand(environ []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "outbox-cdc",
		Short: "Deliver the events of an outbox table, in order, from PostgreSQL's write-ahead log",
		Long: fmt.Sprintf(`outbox-cdc reads the committed inserts of an outbox table from PostgreSQL's write-ahead log, delivers them to
sinks in order per aggregate, writes what became of each into a ledger, and only then lets the replication slot
move on.

Exit codes: %d done, %d failure, %d usage, %d PostgreSQL cannot be reached, %d the slot is lost or not ours, %d
not everything could be compared (verify), %d a privilege is missing, %d the configuration (or the database's) is invalid.`, exitcode.OK, exitcode.Failure, exitcode.Usage,
			exitcode.Unavailable, exitcode.SlotLost, exitcode.Undecided, exitcode.Privilege, exitcode.Config),
		Example: `  DATABASE_URL=postgres://localhost/shop OUTBOX_PUBLISHER_TYPE=stdout outbox-cdc run --init
  outbox-cdc config example > outbox.yaml
  outbox-cdc validate --config outbox.yaml
  outbox-cdc run --config outbox.yaml`,
		Version: buildinfo.Read().Version,
		// execute prints the error, once. The usage is printed only for --help.
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w; see %s --help", err, cmd.CommandPath())
	})
	asGroup(root)
	root.AddCommand(
		newRunCommand(environ),
		newInitCommand(environ),
		newResyncCommand(environ),
		newBacklogCommand(environ),
		newDestroyCommand(environ),
		newSkipCommand(environ),
		newVerifyCommand(environ),
		newAdoptCommand(environ),
		newValidateCommand(environ),
		newRouteCommand(environ),
		newEventsCommand(environ),
		newDLQCommand(environ),
		newCleanupCommand(environ),
		newPauseCommand(environ),
		newResumeCommand(environ),
		newRetryCommand(environ),
		newStatusCommand(environ),
		newHealthCommand(environ),
		newMonitoringCommand(environ),
		newReportCommand(environ),
		newConfigCommand(environ),
		newVersionCommand(),
	)
	setConfigFlags(root, config.FileOf(environ))
	return root
}

// refuseUnknown adds cobra's own commands, completion and help, and lets them refuse what they do not know as all others do.
// It comes after root.SetOut, because completion keeps the output of that moment.
func refuseUnknown(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				found, rest, err := root.Find(args)
				if err != nil || len(rest) == 0 {
					return err
				}
				return found.Args(found, rest)
			}
		case "completion":
			asGroup(cmd)
			for _, shell := range cmd.Commands() {
				shell.Args = noArgs
			}
		}
	}
}

// asGroup makes cmd a command that only holds other commands. Without arguments it prints its help. Any argument is a
// usage error, because it is not the name of one of its commands.
func asGroup(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := "see " + cmd.CommandPath() + " --help"
		if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
			hint = "did you mean " + strings.Join(similar, " or ") + "?"
		}
		return usageError("%s has no command %q; %s", cmd.CommandPath(), args[0], hint)
	}
}

// noArgs does what cobra.NoArgs does, but its error is a usage error.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError("%s takes no arguments, and got %q; see %s --help", cmd.CommandPath(), args, cmd.CommandPath())
	}
	return nil
}
