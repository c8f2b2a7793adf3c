package service

import (
	"math"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
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
