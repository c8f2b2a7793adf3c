package main

import (
	"bufio"
	"errors"
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

A slot that an instance streams from is refused: stop that first.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			owner := adminDSN(dsn, environ)
			cfg, err := loadConfig(cmd, path, environ, config.Options{DSN: owner, NoSinks: true})
			if err != nil {
				return err
			}
			if !yes {
				what := fmt.Sprintf("the replication slot %s and the publication %s", cfg.Source.Slot, cfg.Source.Publication)
				if ledger {
					what += fmt.Sprintf(", and the ledger in schema %s with what is still owed", cfg.Source.LedgerSchema)
				}
				if err := confirm(cmd, what); err != nil {
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

// confirm asks whether to drop something, and returns an error unless the answer is yes. It asks on stderr, so that the
// question does not get into the result.
func confirm(cmd *cobra.Command, what string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "Drop %s? Type yes: ", what)
	answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // an error, such as the end of the input, is not "yes"
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was dropped; answer yes, or use --yes")
	}
	return nil
}

func destroyText(r service.DestroyResult) string {
	var b strings.Builder
	for _, done := range []struct {
		done bool
		what string
	}{
		{r.SlotDropped, "the replication slot"},
		{r.PublicationDropped, "the publication"},
		{r.CheckpointDeleted, "the checkpoint"},
		{r.LedgerDropped, "the ledger"},
	} {
		if done.done {
			fmt.Fprintf(&b, "dropped %s\n", done.what)
		}
	}
	if b.Len() == 0 {
		return "nothing was there\n"
	}
	return b.String()
}
