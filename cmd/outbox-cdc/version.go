package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
)

func newVersionCommand() *cobra.Command {
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print version, commit and its date, Go version and platform",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			v := buildinfo.Read()
			return output.write(cmd.OutOrStdout(), v, versionText(v))
		},
	}
	output.register(cmd)
	return cmd
}

func versionText(v buildinfo.Info) string {
	commit := "unknown"
	if v.Commit != "" {
		commit = v.Commit
	}
	if v.Time != "" {
		commit += " of " + v.Time
	}
	if v.Modified {
		commit += ", with changes that are not committed"
	}
	return fmt.Sprintf("outbox-cdc %s\ncommit %s\n%s %s\n", v.Version, commit, v.Go, v.Platform)
}
