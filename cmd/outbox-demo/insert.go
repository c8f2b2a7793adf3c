package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/internal/demo"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// insertTimeout bounds the wait for a demo that hangs.
const insertTimeout = 30 * time.Second

func newInsertCommand() *cobra.Command {
	var (
		e            outbox.Event
		dsn, payload string
	)
	cmd := &cobra.Command{
		Use:   "insert",
		Short: "Insert an event of your own into the demo's outbox",
		Long:  "Insert one event into event_outbox, if you have no psql. The demo prints the DSN, and a command to paste.",
		Example: `  outbox-demo insert --dsn "$DSN"
  outbox-demo insert --dsn "$DSN" --aggregate-type invoice --aggregate-id 7 --event-type invoice.sent --payload '{"due": "2030-01-31"}'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dsn == "" {
				return usageError("--dsn is missing; the demo prints it when it starts")
			}
			e.Payload = []byte(payload)
			ctx, cancel := context.WithTimeout(cmd.Context(), insertTimeout)
			defer cancel()
			id, err := demo.Insert(ctx, dsn, e)
			if err != nil && replication.Unreachable(err) {
				return exitcode.With(exitcode.Unavailable, err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "inserted %s\n", id)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dsn, "dsn", "", "the demo's `connection`")
	flags.StringVar(&e.AggregateType, "aggregate-type", "order", "the topic is outbox.event. and this")
	flags.StringVar(&e.AggregateID, "aggregate-id", "42", "the record's key")
	flags.StringVar(&e.EventType, "event-type", "order.created", "the record's header eventType")
	flags.StringVar(&payload, "payload", `{"total": 99}`, "the record's value, a `JSON` text")
	return cmd
}
