package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newDLQCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "Look at dead letters; retry, discard, purge or export them",
		Long: `A dead letter is an event that a sink has refused too often, or once for good. It is kept, with its payload and the
error, until a person acts. What belongs to no sink (sink "none") was no valid event: it cannot be retried.`,
	}
	asGroup(cmd)
	cmd.AddCommand(
		newDLQListCommand(environ),
		newDLQShowCommand(environ),
		newDLQChangeCommand(environ, admin.Retry),
		newDLQChangeCommand(environ, admin.Discard),
		newDLQChangeCommand(environ, admin.Kill),
		newDLQPurgeCommand(environ),
		newDLQExportCommand(environ),
	)
	return cmd
}

// adminConfig loads the configuration for a command that works only on the ledger. The configuration needs no sinks.
func adminConfig(cmd *cobra.Command, path string, environ []string) (admin.Config, error) {
	cfg, err := loadConfig(cmd, path, environ, config.Options{NoSinks: true})
	if err != nil {
		return admin.Config{}, err
	}
	if verbose, err := cmd.Flags().GetBool(verboseFlag); err == nil && verbose { // completion of names calls this without the flag
		if _, err := tellDatabase(cmd, cfg, "", ""); err != nil {
			return admin.Config{}, err
		}
	}
	return service.AdminConfig(cfg), nil
}

func newDLQListCommand(environ []string) *cobra.Command {
	var (
		path   string
		filter filterFlags
		page   pageFlags
		output listFormat
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters",
		Long:  "List dead letters, in order of sink and position, without payloads.",
		Example: `  outbox-cdc dlq list --config outbox.yaml
  outbox-cdc dlq list --sink partner --type 'payment.*' --error timeout --since 2d
  outbox-cdc dlq list --aggregate order/42 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFlags(output.check, page.check); err != nil {
				return err
			}
			f, err := filter.parse(time.Now())
			if err != nil {
				return err
			}
			cfg, err := adminConfig(cmd, path, environ)
			if err != nil {
				return err
			}
			found, err := admin.Events(cmd.Context(), cfg, admin.EventsQuery{Status: "dead", Filter: f, Limit: page.limit, After: page.after})
			if err != nil {
				return err
			}
			letters := found.Parked
			text := "no dead letters\n"
			if !f.Empty() {
				text = fmt.Sprintf("no dead letter matches (%s)\n", clean(f.String()))
			}
			if len(letters) > 0 {
				text = deadTable(letters) + nextText(found.Next)
			}
			return output.write(cmd.OutOrStdout(), deadLetterList{letters, found.Next}, text)
		},
	}
	ledgerFlags(cmd, &path)
	filter.register(cmd, &path, environ)
	page.register(cmd)
	output.register(cmd)
	return cmd
}

// deadLetterList is the JSON that "dlq list" prints.
type deadLetterList struct {
	DeadLetters []*admin.ParkedRow `json:"dead_letters"`
	Next        string             `json:"next,omitempty"`
}

func newDLQShowCommand(environ []string) *cobra.Command {
	var (
		path    string
		filter  filterFlags
		limit   int
		payload bool
		output  listFormat
	)
	cmd := &cobra.Command{
		Use:   "show [event id]...",
		Short: "Show all of a dead letter: event, error and the tries that led to it",
		Example: `  outbox-cdc dlq show 0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f
  outbox-cdc dlq show --sink none --payload --limit 1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFlags(output.check, (&pageFlags{limit: limit}).check); err != nil {
				return err
			}
			filter.filter.IDs = append(filter.filter.IDs, args...)
			f, err := filter.parse(time.Now())
			if err != nil {
				return err
			}
			cfg, err := adminConfig(cmd, path, environ)
			if err != nil {
				return err
			}
			letters, err := admin.ShowDeadLetters(cmd.Context(), cfg, admin.DeadLetterQuery{Filter: f, Payload: payload, Limit: limit})
			if err != nil {
				return err
			}
			var texts []string
			for i := range letters {
				text := parkedDetails(&letters[i].ParkedRow)
				if len(letters[i].Log) > 0 {
					text += triesTable(letters[i].Log, wholeError)
				}
				texts = append(texts, text)
			}
			return output.write(cmd.OutOrStdout(), map[string]any{"dead_letters": letters}, strings.Join(texts, "\n"))
		},
	}
	ledgerFlags(cmd, &path)
	filter.register(cmd, &path, environ)
	payloadFlag(cmd, &payload)
	cmd.Flags().IntVar(&limit, "limit", 20, "how many, 1 to 10000")
	output.register(cmd)
	return cmd
}

func payloadFlag(cmd *cobra.Command, payload *bool) {
	cmd.Flags().BoolVar(payload, "payload", false, "show payloads as well; they may be confidential")
}

func newDLQExportCommand(environ []string) *cobra.Command {
	var (
		path    string
		filter  filterFlags
		payload bool
	)
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write dead letters as lines of JSON",
		Long: `Write dead letters to standard output, each as a line of JSON. A payload stands in "payload" where it is JSON, else in
"payload_base64". Nothing is changed.`,
		Example: `  outbox-cdc dlq export --payload > dead.jsonl
  outbox-cdc dlq export --sink partner | jq -r .error | sort | uniq -c`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := filter.parse(time.Now())
			if err != nil {
				return err
			}
			cfg, err := adminConfig(cmd, path, environ)
			if err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetEscapeHTML(false)
			return admin.EachDeadLetter(cmd.Context(), cfg, admin.DeadLetterQuery{Filter: f, Payload: payload}, func(p *admin.ParkedRow) (bool, error) {
				if err := enc.Encode(p); err != nil {
					return false, fmt.Errorf("write: %w", err)
				}
				return true, nil
			})
		},
	}
	ledgerFlags(cmd, &path)
	filter.register(cmd, &path, environ)
	payloadFlag(cmd, &payload)
	return cmd
}
