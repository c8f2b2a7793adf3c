// Package service makes a connector out of a configuration. Two kinds of programs use it: the command outbox-cdc, and
// Go services that embed the connector.
//
// A service that embeds the connector needs OutboxService alone, with OutboxServiceConfig or one of the Setup functions. It can
// import this package under the name outbox: the names of the packages outbox and sinks that it needs are here as well.
//
// The command uses Run, Init and Destroy. What people do with a connector, such as looking at dead letters, is not here but in
// package admin.
package service

import (
	"context"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/tracing"
)

// BuildOptions hold what a connector shares with the process around it. A connector that is to run needs all of them, except
// where a comment says otherwise. One that is built only to find mistakes needs none.
type BuildOptions struct {
	Logger  *slog.Logger
	Metrics *monitoring.Metrics
	Health  *monitoring.Health
	// Stdout is where a sink of type stdout writes.
	Stdout io.Writer
	// InProcess opens the sinks of type config.SinkInProcess, by name. It may be nil if there are none.
	InProcess map[string]func() (sinks.Sink, error)
	// Prepare is called before the first session. It may be nil.
	Prepare func(context.Context) error
	// Predecessor and LoginRefused are those of connector.Config.
	Predecessor  connector.Predecessor
	LoginRefused func()
	// HTTP and Status are those of connector.Config.
	HTTP   string
	Status func() monitoring.Status
	// TracerProvider makes the spans. It is nil if nothing is traced.
	TracerProvider trace.TracerProvider
}

// Build makes the connector that cfg describes. It connects to nothing. The caller has loaded cfg with package config, which
// has validated it. Only the packages of the sinks may still find mistakes; if config.Options.CheckSink was CheckSink, they
// have found them already, and the mistakes came with the lines of the file.
func Build(cfg config.Config, o BuildOptions) (*connector.Connector, error) {
	d := cfg.Delivery
	c := connector.Config{
		Name: cfg.Name, Abandoned: cfg.Abandoned,
		Source: connector.Source{
			DSN: string(cfg.Source.DSN), ReplicationDSN: string(cfg.Source.ReplicationDSN),
			MaxConnections: cfg.Source.MaxConnections,
			Slot:           cfg.Source.Slot, Publication: cfg.Source.Publication,
			Table: cfg.Source.Table, LedgerSchema: cfg.Source.LedgerSchema,
			Columns: decoder.Columns(cfg.Source.Columns), Failover: cfg.Source.Failover, OrderBy: cfg.Source.Order(),
		},
		Delivery: connector.DeliveryConfig{
			BatchSize: d.BatchSize, Lanes: d.Lanes, Timeout: d.Timeout, DrainTimeout: d.DrainTimeout, MaxRetries: d.MaxRetries,
			ParkAfter: d.Park(), GiveUpAfter: d.GiveUpAfter, DeadBlocks: d.OnDeadLetter == config.DeadBlock,
			Retry:       connector.Retry{Initial: d.Retry.Initial, Max: d.Retry.Max},
			MaxInFlight: d.MaxInFlight, MaxInFlightBytes: int(d.MaxInFlightBytes), MaxEventBytes: int(d.MaxEventBytes),
		},
		Breaker: connector.BreakerConfig(cfg.Breaker), Retention: Retention(cfg),
		Metrics: o.Metrics, Health: o.Health, Logger: o.Logger, Prepare: o.Prepare,
		Predecessor: o.Predecessor, LoginRefused: o.LoginRefused, HTTP: o.HTTP, Status: o.Status, Tracer: tracing.NewTracer(o.TracerProvider),
	}
	if cfg.Source.OnSlotLoss == config.SlotLossResync {
		c.Resync = func(ctx context.Context) error { return resyncUnattended(ctx, cfg, o.Logger) }
	}
	if _, err := TracingTLS(cfg.Tracing); err != nil {
		return nil, err
	}
	var err error
	if c.Sinks, err = buildSinks(cfg, o); err != nil {
		return nil, err
	}
	for i := range c.Sinks {
		c.Sinks[i].Traced = traced(cfg, c.Sinks[i].Name)
	}
	if c.Routes, err = buildRoutes(cfg); err != nil {
		return nil, err
	}
	return connector.New(c), nil
}
