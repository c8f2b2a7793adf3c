package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

var errNotUsable = errors.New("not everything can be used")

func newValidateCommand(environ []string) *cobra.Command {
	var (
		path    string
		connect bool
		timeout time.Duration
		output  outputFormat
	)
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check the configuration and name every mistake",
		Long: `Check the configuration, and name every mistake with its line and key. It connects to nothing.

With --connect it then asks PostgreSQL, with both logins, and the destinations of all sinks whether they can be used. It sends no message
and changes nothing. It lists the topics, streams and subjects that can be named before there is an event, which of them are missing, and
the commands that make them. The exit code is 1 if something cannot be used.`,
		Example: `  outbox-cdc validate --config outbox.yaml
  outbox-cdc validate --config outbox.yaml --connect`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			if !connect && (cmd.Flags().Changed("output") || cmd.Flags().Changed("timeout")) {
				return usageError("-o and --timeout are for what --connect finds; write --connect as well")
			}
			if timeout <= 0 {
				return usageError("no timeout %s; write how long to wait for each answer, such as 10s", timeout)
			}
			c, err := loadConfig(cmd, path, environ, config.Options{CheckSink: service.CheckSink})
			if err != nil {
				return err
			}
			if _, err := service.Build(c, service.BuildOptions{}); err != nil {
				return err
			}
			if connect {
				return reach(cmd, c, service.ReachOptions{Timeout: timeout}, output)
			}
			names := make([]string, len(c.Sinks))
			for i, s := range c.Sinks {
				names[i] = s.Name + " (" + s.Type + ")"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "valid: %s from %s to %s\n%s", c.Name, c.Source.Table, strings.Join(names, ", "), deletesText(c))
			return err
		},
	}
	configFlag(cmd, &path)
	output.register(cmd)
	cmd.Flags().BoolVar(&connect, "connect", false, "also ask PostgreSQL and the sinks whether they can be used")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long PostgreSQL and each sink may take to answer")
	return cmd
}

// reach says whether PostgreSQL and the sinks can be used.
func reach(cmd *cobra.Command, c config.Config, o service.ReachOptions, output outputFormat) error {
	o.Waiting = func(names []string) {
		fmt.Fprintf(cmd.ErrOrStderr(), "waiting for %s\n", strings.Join(names, ", "))
	}
	r, err := service.Reach(cmd.Context(), c, o)
	if err != nil {
		return err
	}
	if err := output.write(cmd.OutOrStdout(), r, reachText(r)); err != nil {
		return err
	}
	if !r.Usable {
		return exitcode.With(exitcode.Failure, errNotUsable)
	}
	return nil
}

func reachText(r service.Reachable) string {
	var b strings.Builder
	fmt.Fprintf(&b, "PostgreSQL, %s: %s\n", r.PostgreSQL.Place, verdict(service.SinkCheck{Usable: r.PostgreSQL.Usable}))
	for _, p := range r.PostgreSQL.Problems {
		fmt.Fprintf(&b, "  %s\n", p)
	}
	for _, w := range r.PostgreSQL.Warnings {
		fmt.Fprintf(&b, "  warning: %s\n", w)
	}
	for _, s := range r.Sinks {
		sinkText(&b, "", s)
		for _, m := range s.Members {
			sinkText(&b, "  ", m)
		}
	}
	return b.String()
}

func sinkText(b *strings.Builder, indent string, s service.SinkCheck) {
	fmt.Fprintf(b, "%s%s (%s): %s\n", indent, s.Name, s.Type, verdict(s))
	if s.Problem != "" {
		fmt.Fprintf(b, "%s  %s\n", indent, s.Problem)
	}
	for _, t := range s.Topics {
		fmt.Fprintf(b, "%s  %s %s: ", indent, t.Kind, t.Topic)
		if t.Usable {
			b.WriteString("ok\n")
			continue
		}
		fmt.Fprintf(b, "%s\n", t.Problem)
		if t.Remedy != "" {
			fmt.Fprintf(b, "%s    %s\n", indent, t.Remedy)
		}
	}
	for _, t := range s.Templates {
		fmt.Fprintf(b, "%s  %s comes from events, so nobody can look for it\n", indent, t)
	}
}

// verdict says how a sink does.
func verdict(s service.SinkCheck) string {
	switch {
	case !s.Usable:
		return "cannot be used"
	case s.Unknown != "":
		return "not checked: " + s.Unknown
	}
	return "ok"
}
