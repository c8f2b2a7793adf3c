package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

func behindRow() row {
	return row{"How far behind is it?", []cog.Builder[dashboard.Panel]{
		lines(panel{
			title: "Lag in bytes",
			shows: "WAL that the slot has not confirmed.",
			good:  "it stays low, or falls. Peaks at large transactions are normal.",
			todo:  "if it grows for minutes, see below which sink or which stage is slow. PostgreSQL keeps this WAL until the slot moves.",
			page:  "operations.md#lag", unit: units.BytesIEC, width: 12,
		}, query{leading(ofInstances("slot_lag_bytes"), "job"), "not confirmed"}),
		lines(panel{
			title: "Lag in seconds",
			shows: "Age of the last transaction settled; 0 when nothing is known to wait.",
			good:  "well below a second.",
			todo:  "if it grows as fast as the clock, nothing is settled: /readyz says what the connector waits for.",
			page:  "operations.md#lag", unit: units.Seconds, width: 12,
		}, query{leading(ofInstances("slot_lag_seconds"), "job"), "behind"}),
	}}
}
