package service

import (
	"context"
	"log/slog"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// RunOptions say how Run runs.
type RunOptions struct {
	// Init does what the command init does, first.
	Init   bool
	Logger *slog.Logger
}

// Run runs the connector of cfg with its HTTP server until ctx ends and the connector has drained. Its error may have
// ExitCode() int.
func Run(ctx context.Context, cfg config.Config, opts RunOptions) error {
	reg := monitoring.NewRegistry()
	parts := Parts{Logger: opts.Logger, Health: &monitoring.Health{}, Stdout: os.Stdout, Metrics: monitoring.NewMetrics(cfg.Metrics.Prefix, reg)}
	if !cfg.Metrics.Enabled {
		reg = nil
	}
	if opts.Init {
		parts.Prepare = func(ctx context.Context) error { return initialize(ctx, cfg, opts.Logger) }
	}
	c, err := Build(cfg, parts)
	if err != nil {
		return err
	}
	// The server outlives the connector: health can be asked during the drain.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var g errgroup.Group
	if cfg.HTTP.Listen != "" {
		g.Go(func() error {
			err := monitoring.Server{
				Listen: cfg.HTTP.Listen, Hosts: cfg.HTTP.Hosts, Handler: monitoring.Handler(reg, parts.Health), Logger: opts.Logger,
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
