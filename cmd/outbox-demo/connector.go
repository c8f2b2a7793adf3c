package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

// connectorCommand is the hidden command by which the demo runs itself as the connector. It does what
// "outbox-cdc run --init --config" does, so that one program is all that the demo needs.
const connectorCommand = "connector"

func newConnectorCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:    connectorCommand,
		Short:  "Be the connector of a demo",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The environment is left out, because its variables would prevail over the configuration file.
			c, _, err := config.LoadWith(path, nil, config.Options{CheckSink: service.CheckSink})
			if err != nil {
				return err
			}
			logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			if err := service.Run(cmd.Context(), c, service.RunOptions{Init: true, Logger: logger}); err != nil {
				return exitcode.Errorf(exitcode.Of(err), "stopped: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration `file`")
	return cmd
}
