package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func newRunCommand(environ []string) *cobra.Command {
	var (
		path    string
		initial bool
		logs    logFlags
	)
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Deliver events until told to end",
		Long: `Deliver events until SIGTERM or SIGINT, which end it cleanly: what is being delivered is settled first, for
at most delivery.drain_timeout. A second signal ends it at once.

SIGHUP reads the configuration again: the file, the same environment, and the files of ${file:…}. If it is valid,
running deliveries end and it is in force, within a second where no delivery hangs. Otherwise everything goes on as
before, and the log says why. The files of ${file:…} are also read again when a login is refused. http, metrics and
tracing need a new start.

Under systemd with Type=notify it says when it is ready, reloads and ends, and while it is alive (WatchdogSec=).

Another instance with the same slot stands by, ready, and takes over. A sink that is away never ends the process.`,
		Example: `  outbox-cdc run --config outbox.yaml
  DATABASE_URL=postgres://localhost/shop OUTBOX_PUBLISHER_TYPE=kafka OUTBOX_KAFKA_BROKERS=localhost:9092 outbox-cdc run --init`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			logger, err := logs.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			takeLibraryLog(logger)
			unit := systemd(environ, logger)
			defer func() { tellFailure(unit, err) }()
			reload := make(chan os.Signal, 1) // one that comes during a reload makes one more
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			document, err := config.ReadDocument(path, environ, config.Options{CheckSink: service.CheckSink})
			if err != nil {
				return err
			}
			c, warnings, err := document.Load()
			if err != nil {
				return err
			}
			for _, w := range warnings {
				logger.Warn("configuration", "warning", w)
			}
			spans, err := startTracing(c.Tracing, logger)
			if err != nil {
				return err
			}
			defer spans.Stop()
			if err := service.Run(cmd.Context(), c, service.RunOptions{
				Init: initial, Logger: logger, Document: document, Reload: reload, TracerProvider: spans.Provider(),
				Systemd: unit,
			}); err != nil {
				logger.Error("stopped", "err", err, "exit_code", int(exitcode.Of(err)))
				return loggedError{err}
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&initial, "init", false, "first make what is missing of tables, publication and slot, as init does")
	logs.register(cmd)
	return cmd
}
