package main

import (
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newSkipCommand(environ []string) *cobra.Command {
	var (
		path, dsn, lsn string
		o              service.SkipOptions
		yes            bool
		output         outputFormat
	)
	cmd := &cobra.Command{
		Use:   "skip --lsn LSN",
		Short: "Pass one transaction that PostgreSQL cannot send, or that cannot be decoded",
		Long: `Pass one transaction at which the stream ends again and again, because a row of it cannot be sent or decoded. The
message of the connector names its LSN. Slot and checkpoint move past it, and what it has written into the outbox is not
delivered, except for rows that were read before the one that cannot be.

It shows the rows of the outbox that the transaction has written, as far as they can be found, and asks; off a terminal it
needs --yes. The log keeps a row of each, as discarded by no sink. To send one of these events after all, mend it and write
it again (delete the row and insert it with the same id).

Nothing is changed if the LSN is not what the stream cannot pass next, if events before it are not settled yet, or while
another instance streams. A connector that tries this place again and again may go on running. If the command is ended half
way, run it again.`,
		Example: `  outbox-cdc skip --lsn 0/1A2B3C8 --dry-run
  outbox-cdc skip --lsn 0/1A2B3C8 --yes -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			var err error
			if o.LSN, err = skipLSN(lsn); err != nil {
				return err
			}
			if !yes && !o.DryRun {
				if err := needsTerminal(cmd, "look with --dry-run, then use --yes"); err != nil {
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
			o.AdminDSN, o.WaitingForLock = owner, reportLock(cmd)
			o.Confirm = func(r provision.SkipResult) error {
				fmt.Fprint(cmd.ErrOrStderr(), skipFound(r))
				if yes {
					return nil
				}
				return askYes(cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("Pass this transaction for good, of %s?", target.Place()))
			}
			result, err := service.Skip(cmd.Context(), cfg, o)
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), result, skipText(result))
		},
	}
	configFlag(cmd, &path)
	adminFlag(cmd, &dsn)
	output.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&lsn, "lsn", "", "the `LSN` that the connector's message names, such as 0/1A2B3C8")
	flags.BoolVar(&o.DryRun, "dry-run", false, "say what would be passed, and change nothing")
	flags.BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// skipLSN returns what --lsn says.
func skipLSN(text string) (pglogrepl.LSN, error) {
	if text == "" {
		return 0, usageError("say what to pass, such as --lsn 0/1A2B3C8; the connector's message names it")
	}
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil || lsn == 0 || !strings.EqualFold(lsn.String(), text) {
		return 0, usageError("--lsn %q is no LSN; write it as the connector's message does, such as 0/1A2B3C8", text)
	}
	return lsn, nil
}

// skipFound says what is about to be passed.
func skipFound(r provision.SkipResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "transaction %d, commit LSN %s, committed %s UTC: %s\n", r.Transaction, r.LSN, timeText(&r.Committed), clean(r.Cause))
	switch {
	case r.RowsUnknown != "":
		fmt.Fprintf(&b, "which rows of the outbox it has written is not known: %s\n", clean(r.RowsUnknown))
	case r.RowCount == 0:
		b.WriteString("no row of the outbox is found that it has written; they may be deleted, or written behind a savepoint\n")
	default:
		fmt.Fprintf(&b, "it has written into the outbox, %d in all:\n", r.RowCount)
		for _, row := range r.Rows {
			what := "will not be delivered"
			if row.Known {
				what = "was read before, and is delivered or parked"
			}
			at := ""
			if row.CreatedAt != nil {
				at = " of " + timeText(row.CreatedAt) + " UTC"
			}
			fmt.Fprintf(&b, "  %s%s: %s\n", clean(row.ID), at, what)
		}
		if more := r.RowCount - len(r.Rows); more > 0 {
			fmt.Fprintf(&b, "  and %d more\n", more)
		}
	}
	return b.String()
}

func skipText(r provision.SkipResult) string {
	switch {
	case r.DryRun && r.Resumed:
		return skipFound(r) + "an earlier skip has moved the checkpoint past it already; would move the slot\n"
	case r.DryRun:
		return skipFound(r) + "would pass it\n"
	case r.Resumed:
		return fmt.Sprintf("an earlier skip had moved the checkpoint; now slot %s stands at %s as well\n", r.Slot, r.MovedTo)
	}
	return fmt.Sprintf("SKIPPED transaction %d at %s; slot %s stands at %s\n", r.Transaction, r.LSN, r.Slot, r.MovedTo)
}
