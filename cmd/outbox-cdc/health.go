package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

func newHealthCommand(environ []string) *cobra.Command {
	var (
		path         string
		live, strict bool
		timeout      time.Duration
	)
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the instance on this host how it is, as a healthcheck does",
		Long: `Ask the instance on this host, at http.listen, for /readyz: exit code 0 if it does its job, although a sink may be
away. --strict wants all to be ok; --live only asks whether the process answers (/livez). docs/health.md says what each
means. Images need no curl for this. Exit code 1 says that the answer is another one, or that there is none.`,
		Example: `  outbox-cdc health --config outbox.yaml
  outbox-cdc health --live`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case live && strict:
				return usageError("--live and --strict ask for different things; write one of them")
			case timeout <= 0:
				return usageError("no timeout %s; write how long to wait for the answer, such as 3s", timeout)
			}
			c, _, err := config.LoadWith(path, environ, config.Options{OnlyHTTP: true})
			if err != nil {
				return err
			}
			if c.HTTP.Listen == "" {
				return exitcode.Errorf(exitcode.Config, "http.listen is off, so no instance can be asked; write an address there, such as 127.0.0.1:9640")
			}
			probe := admin.ProbeReady
			switch {
			case live:
				probe = admin.ProbeLive
			case strict:
				probe = admin.ProbeStrict
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("no answer within %s", timeout))
			defer cancel()
			health, err := admin.AskHealth(ctx, c.HTTP.Listen, probe)
			if err != nil {
				return err
			}
			text := strings.Join(append([]string{health.Status}, health.Troubles...), "\n  ")
			if !health.OK {
				return errors.New(text)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&live, "live", false, "ask only whether the process answers")
	cmd.Flags().BoolVar(&strict, "strict", false, "want every sink to be ok as well")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}
