package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newInitCommand(environ []string) *cobra.Command {
	var (
		path, dsn, backlog, parked string
		dryRun, printSQL           bool
		partitioned, failover      bool
		output                     outputFormat
		timeout                    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make tables, publication and replication slot",
		Long: `Make what a run needs and is not there yet: the outbox and its ledger, a publication of inserts alone, the
replication slot and its checkpoint. It may be run again.

The login needs an owner's rights. Where the connector's own has fewer, give another by --dsn or OUTBOX_ADMIN_URL; it
also grants the connector's login what that needs. Or let an administrator run what --print-sql prints, two logins with
the least privileges included; then init runs with the connector's own.

It says what a connector with this configuration will delete, and when (retention.outbox, retention.ledger).

The stream carries only what commits once there is a slot, so an outbox that holds rows already is refused, unless
--backlog says what becomes of them: all are delivered, none, those since a time (since:7d, since:2024-05-31), or those
that an SQL condition names ("where:tenant_id = 'a'"). init files a job for each sink, and "outbox-cdc run" works on
the jobs: it delivers the rows in the order of their time, and new events wait behind them. "outbox-cdc backlog" shows
how far the jobs are.

If the ledger still owes events to sinks from before, --parked says what becomes of them: keep delivers them, discard
gives them up. In a copy of a database discard is right, because the original delivers them.`,
		Example: `  outbox-cdc init --config outbox.yaml
  outbox-cdc init --config outbox.yaml --backlog since:7d
  outbox-cdc init --config outbox.yaml --print-sql | psql "$OUTBOX_ADMIN_URL"`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			rows, err := parseBacklog(backlog, time.Now())
			if err != nil {
				return err
			}
			choice, err := parseParked(parked)
			if err != nil {
				return err
			}
			if timeout <= 0 {
				return usageError("no timeout %s; write how long to wait, such as 1m", timeout)
			}
			if dryRun && printSQL {
				return usageError("--dry-run and --print-sql exclude each other")
			}
			owner, place := adminDSN(dsn, environ)
			cfg, err := loadConfig(cmd, path, environ, config.Options{
				DSN: owner, DSNPlace: place, NoSinks: true, CheckSink: service.CheckSink,
				SinksOptional: !rows.Some, // a job is filed for each sink
			})
			if err != nil {
				return err
			}
			inFile := cfg.Source.Failover
			cfg.Source.Failover = cfg.Source.Failover || failover
			if !printSQL {
				if _, err := tellDatabase(cmd, cfg, owner, place); err != nil {
					return err
				}
			}
			o := service.InitOptions{
				AdminDSN: owner, Backlog: rows, Parked: choice, Partitioned: partitioned, Timeout: timeout,
				WaitingForLock: reportLock(cmd), Waiting: reportBlockers(cmd),
			}
			switch {
			case printSQL:
				text, err := service.InitSQL(cmd.Context(), cfg, o)
				if err != nil {
					return err
				}
				_, err = io.WriteString(cmd.OutOrStdout(), text)
				return err
			case dryRun:
				steps, err := service.InitPlan(cmd.Context(), cfg, o)
				if err != nil {
					return err
				}
				return output.write(cmd.OutOrStdout(), map[string][]string{"steps": steps, "deletes": service.Deletes(cfg)}, planText(steps)+deletesText(cfg))
			}
			result, err := service.Init(cmd.Context(), cfg, o)
			for _, w := range result.Warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			if err != nil {
				return err
			}
			if failover && !inFile {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning: the configuration does not say source.failover: true, so a slot that is made anew would not survive a failover; add it")
			}
			return output.write(cmd.OutOrStdout(), result, initText(result)+deletesText(cfg))
		},
	}
	configFlag(cmd, &path)
	adminFlag(cmd, &dsn)
	output.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&backlog, "backlog", "", "what becomes of rows that are in the outbox already: `all|none|since:TIME|where:CONDITION`")
	parkedFlag(cmd, &parked)
	flags.BoolVar(&failover, "failover", false, "make the slot one that standbys have a copy of (PostgreSQL 17 and later), as source.failover; see docs/failover.md")
	flags.BoolVar(&partitioned, "partitioned", false, "make event_outbox partitioned by UTC day, for high rates; see docs/partitions.md")
	flags.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	flags.BoolVar(&printSQL, "print-sql", false, "print the SQL of tables, publication and logins, and do nothing")
	flags.DurationVar(&timeout, "timeout", time.Minute, "how long to wait for transactions that hold up the slot, for another init, and for the lock of a table")
	return cmd
}

func planText(steps []string) string {
	if len(steps) == 0 {
		return "nothing to do\n"
	}
	return "would:\n  " + strings.Join(steps, "\n  ") + "\n"
}

// deletesText says what a connector with this configuration deletes.
func deletesText(cfg config.Config) string {
	return strings.Join(service.Deletes(cfg), "\n") + "\n"
}

func initText(r service.InitResult) string {
	var b strings.Builder
	for _, name := range r.Migrations {
		fmt.Fprintf(&b, "applied %s\n", name)
	}
	if r.PublicationCreated {
		b.WriteString("created the publication\n")
	}
	if r.SlotCreated {
		fmt.Fprintf(&b, "created the replication slot; what commits from %s on is delivered\n", r.ConsistentPoint)
	}
	if r.FailoverSet {
		b.WriteString("made the replication slot a failover slot\n")
	}
	discardedText(&b, r.Discarded)
	jobsText(&b, r.Jobs, provision.Estimate{Rows: r.Rows, Exact: r.RowsCounted})
	if b.Len() == 0 {
		return "everything was there already\n"
	}
	return b.String()
}

// reportLock returns a function that says on stderr which other session the command waits for.
func reportLock(cmd *cobra.Command) func(holder string) {
	return func(holder string) {
		fmt.Fprintf(cmd.ErrOrStderr(), "waiting for another init, resync or destroy: %s\n", holder)
	}
}

// adminFlag adds the flag --dsn to a command.
func adminFlag(cmd *cobra.Command, dsn *string) {
	cmd.Flags().StringVar(dsn, "dsn", "", "`connection` with an owner's rights (default OUTBOX_ADMIN_URL, else that of the configuration)")
}

// adminDSN returns the value of --dsn, or else of OUTBOX_ADMIN_URL, and which of them has it. Both are empty if neither is set.
func adminDSN(flag string, environ []string) (dsn, place string) {
	if flag != "" {
		return config.Clean(flag), "--dsn"
	}
	const variable = "OUTBOX_ADMIN_URL"
	for _, e := range environ {
		if value, ok := strings.CutPrefix(e, variable+"="); ok && config.Clean(value) != "" {
			return config.Clean(value), variable
		}
	}
	return "", ""
}
