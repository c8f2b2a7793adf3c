// Package service makes a connector out of a configuration, for the command and for Go services alike.
package service

import (
	"context"
	"io"
	"log/slog"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Parts are what a connector shares with the process around it. All are required unless they say otherwise.
type Parts struct {
	Logger  *slog.Logger
	Metrics *monitoring.Metrics
	Health  *monitoring.Health
	// Stdout is where a sink of type stdout writes.
	Stdout io.Writer
	// InProcess opens the sinks of type config.SinkInProcess, by name; nil where there is none.
	InProcess map[string]func() (sinks.Sink, error)
	// Prepare is called before the first session; it may be nil.
	Prepare func(context.Context) error
}

// Build makes the connector that cfg describes. It connects to nothing. cfg was validated by config.Load; where it was
// by config.LoadWith with CheckSink, what the sinks' packages have against it was told there, with lines.
func Build(cfg config.Config, p Parts) (*connector.Connector, error) {
	d := cfg.Delivery
	c := connector.Config{
		Name: cfg.Name, Abandoned: cfg.Abandoned,
		Source: connector.Source{
			DSN: string(cfg.Source.DSN), ReplicationDSN: string(cfg.Source.ReplicationDSN),
			MaxConnections: cfg.Source.MaxConnections,
			Slot:           cfg.Source.Slot, Publication: cfg.Source.Publication,
			Table: cfg.Source.Table, LedgerSchema: cfg.Source.LedgerSchema,
			Columns: decoder.Columns(cfg.Source.Columns),
		},
		Delivery: connector.Delivery{
			BatchSize: d.BatchSize, Lanes: d.Lanes, Timeout: d.Timeout, DrainTimeout: d.DrainTimeout, MaxRetries: d.MaxRetries,
			ParkAfter: d.Park(), GiveUpAfter: d.GiveUpAfter, Block: d.OnDeadLetter == config.DeadBlock,
			Retry:       connector.Retry{Initial: d.Retry.Initial, Max: d.Retry.Max},
			MaxInFlight: d.MaxInFlight, MaxInFlightBytes: int(d.MaxInFlightBytes), MaxEventBytes: int(d.MaxEventBytes),
		},
		Breaker: connector.Breaker(cfg.Breaker),
		Metrics: p.Metrics, Health: p.Health, Logger: p.Logger, Prepare: p.Prepare,
	}
	var err error
	if c.Sinks, err = buildSinks(cfg, p); err != nil {
		return nil, err
	}
	if c.Routes, err = buildRoutes(cfg); err != nil {
		return nil, err
	}
	return connector.New(c), nil
}
