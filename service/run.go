package service

import (
	"context"
	"log/slog"
	"os"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// RunOptions say how to run a connector.
type RunOptions struct {
	// Init makes what is missing in the database first, as the command init does.
	Init   bool
	Logger *slog.Logger
	// Document is what the configuration was made of. If a login is refused, its files of secrets are read again. It may be the zero
	// value.
	Document config.Document
	// Reload receives a value when Document is to be read again, from the same file. It may be nil.
	Reload <-chan os.Signal
	// TracerProvider makes the spans. It is nil if nothing is traced.
	TracerProvider trace.TracerProvider
	// Systemd is told that the process is ready, reloads, ends and is alive.
	Systemd Systemd
}

// Run runs the connector that cfg describes, with its HTTP server, until ctx ends and the connector has drained. When the configuration
// changes, another connector takes its place. The error may have a method ExitCode() int.
func Run(ctx context.Context, cfg config.Config, o RunOptions) error {
	reg := monitoring.NewRegistry()
	build := BuildOptions{Logger: o.Logger, Health: &monitoring.Health{}, Stdout: os.Stdout, Metrics: monitoring.NewMetrics(cfg.Metrics.Prefix, reg, withins(cfg)...)}
	build.TracerProvider = o.TracerProvider
	build.HTTP = monitoring.Advertised(cfg.HTTP.Listen)
	build.Health.SetOnly("session", monitoring.Failed("starting")) // the HTTP server may be asked before Run says so
	if !cfg.Metrics.Enabled {
		reg = nil
	}
	s := newSupervisor(build.Health, o.Logger)
	s.reload = o.Reload
	s.notices.begin(o.Systemd)
	defer s.notices.end()
	if o.Document.Content != nil { // without a file there is no file of a secret either
		build.LoginRefused = s.noteRefusal
	}
	status := func() monitoring.Status { st, _ := s.tally.status(); return st }
	build.Status = status
	s.steps = configurationSteps(o, build)
	recent := monitoring.NewRecent(status, build.Health)
	if reg != nil {
		reg.MustRegister(monitoring.NewCollector(cfg.Metrics.Prefix, recent.Status))
	}
	logDatabase(o.Logger, cfg)
	// The HTTP server ends after the connector, so that it answers during the drain as well.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var g errgroup.Group
	if cfg.HTTP.Listen != "" {
		g.Go(func() error { recent.Run(serving); return nil })
		g.Go(func() error {
			err := monitoring.Server{
				Listen: cfg.HTTP.Listen, Hosts: cfg.HTTP.Hosts, Handler: monitoring.Handler(reg, build.Health, recent), Logger: o.Logger,
			}.Serve(serving)
			if err != nil {
				stop(err)
			}
			return err
		})
	}
	err := s.run(running, loaded{document: o.Document, config: cfg, files: filesOf(cfg)})
	stopServing()
	if serr := g.Wait(); err == nil {
		err = serr
	}
	return err
}
