package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newValidateCommand(environ []string) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check the configuration and name every mistake",
		Long:  "Check the configuration, and name every mistake with its line and key. It connects to nothing.",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd, path, environ, config.Options{CheckSink: service.CheckSink})
			if err != nil {
				return err
			}
			if _, err := service.Build(c, service.BuildOptions{}); err != nil {
				return err
			}
			names := make([]string, len(c.Sinks))
			for i, s := range c.Sinks {
				names[i] = s.Name + " (" + s.Type + ")"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "valid: %s from %s to %s\n", c.Name, c.Source.Table, strings.Join(names, ", "))
			return err
		},
	}
	configFlag(cmd, &path)
	return cmd
}
