package service

import (
	"math"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// objective returns the objective of a sink.
func objective(cfg config.Config, s config.Sink) connector.Objective {
	sla := cfg.SLAOf(s)
	// 99.9 per cent is to be shown as 0.999, and 99.9/100 is 0.9990000000000001.
	return connector.Objective{Within: sla.Within, Ratio: math.Round(sla.Objective*1e9) / 1e11}
}

// withins returns the times of the objectives of all sinks.
func withins(cfg config.Config) []time.Duration {
	var all []time.Duration
	for _, s := range cfg.Sinks {
		all = append(all, cfg.SLAOf(s).Within)
	}
	return all
}

// ReportConfig returns what admin.ReadReport needs to report on the connector that cfg describes.
func ReportConfig(cfg config.Config) admin.ReportConfig {
	c := admin.ReportConfig{
		Config: AdminConfig(cfg), Objectives: map[string]monitoring.ObjectiveStatus{}, LeftAlone: max(cfg.Delivery.Retry.Max, cfg.Breaker.ResetTimeout),
		Listen: cfg.HTTP.Listen,
	}
	for _, s := range cfg.Sinks {
		o := objective(cfg, s)
		c.Objectives[s.Name] = monitoring.ObjectiveStatus{Within: o.Within, Ratio: o.Ratio}
	}
	return c
}
