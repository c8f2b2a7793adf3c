package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

func newConfigCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Show an example of the configuration, or what it comes to"}
	asGroup(cmd)
	cmd.AddCommand(newConfigExampleCommand(), newConfigEffectiveCommand(environ))
	return cmd
}

func newConfigExampleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "example",
		Short: "Print a configuration with a comment on every key",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), config.Example())
			return err
		},
	}
}

func newConfigEffectiveCommand(environ []string) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "effective",
		Short: "Print what file, environment and defaults come to, secrets masked",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd, path, environ, config.Options{})
			if err != nil {
				return err
			}
			text, err := config.Effective(c)
			if err != nil {
				return fmt.Errorf("write configuration: %w", err)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	configFlag(cmd, &path)
	return cmd
}

// configFlag adds the flag --config to a command.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", "", "configuration `file` (OUTBOX_CONFIG); without it, the environment says it all")
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic(err) // cannot happen: the flag exists
	}
}

// setConfigFlags makes path what --config is, where no flag says it, of all commands below cmd.
func setConfigFlags(cmd *cobra.Command, path string) {
	if flag := cmd.Flags().Lookup("config"); flag != nil && path != "" {
		_ = flag.Value.Set(path) // a text takes any
		flag.DefValue = path
	}
	for _, c := range cmd.Commands() {
		setConfigFlags(c, path)
	}
}

// loadConfig loads the configuration and writes its warnings to stderr.
func loadConfig(cmd *cobra.Command, path string, environ []string, o config.Options) (config.Config, error) {
	c, warnings, err := config.LoadWith(path, environ, o)
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	return c, err
}
