package service

import (
	"context"
	"log/slog"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// RunOptions say how to run a connector.
type RunOptions struct {
	// Init makes what is missing in the database first, as the command init does.
	Init   bool
	Logger *slog.Logger
}

// Run runs the connector that cfg describes, with its HTTP server, until ctx ends and the connector has drained. The error may
// have a method ExitCode() int.
func Run(ctx context.Context, cfg config.Config, o RunOptions) error {
	reg := monitoring.NewRegistry()
	build := BuildOptions{Logger: o.Logger, Health: &monitoring.Health{}, Stdout: os.Stdout, Metrics: monitoring.NewMetrics(cfg.Metrics.Prefix, reg)}
	build.Health.SetOnly("session", monitoring.Failed("starting")) // the HTTP server may be asked before Run says so
	if !cfg.Metrics.Enabled {
		reg = nil
	}
	if o.Init {
		build.Prepare = func(ctx context.Context) error { return initialize(ctx, cfg, o.Logger) }
	}
	c, err := Build(cfg, build)
	if err != nil {
		return err
	}
	if reg != nil {
		reg.MustRegister(monitoring.NewCollector(cfg.Metrics.Prefix, c.Status), monitoring.NewBuildInfo(cfg.Metrics.Prefix))
	}
	logDatabase(o.Logger, cfg)
	// The HTTP server ends after the connector, so that it answers during the drain as well.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var g errgroup.Group
	if cfg.HTTP.Listen != "" {
		g.Go(func() error {
			err := monitoring.Server{
				Listen: cfg.HTTP.Listen, Hosts: cfg.HTTP.Hosts, Handler: monitoring.Handler(reg, build.Health), Logger: o.Logger,
			}.Serve(serving)
			if err != nil {
				stop(err)
			}
			return err
		})
	}
	err = c.Run(running)
	stopServing()
	if serr := g.Wait(); err == nil {
		err = serr
	}
	return err
}
