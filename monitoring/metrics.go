// Package monitoring tells the outside how the connector does: metrics, health, and the HTTP server that shows both.
// It has the names of metrics and components, and measures nothing itself: package connector makes the Status that is shown.
package monitoring

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics holds what a connector measures message by message. A Collector makes all other metrics from the connector's Status. Labels
// are the names of configured sinks and a handful of outcomes: never anything that comes from an event, so the number of series
// is bounded by the configuration.
type Metrics struct {
	// EventDuration is the time from commit (PostgreSQL's clock) to the sink's acceptance, by {sink}.
	EventDuration *prometheus.HistogramVec
	// CleanupDeleted counts the rows that the cleanup has deleted, by {table}.
	CleanupDeleted *prometheus.CounterVec
	// CleanupLastSuccess is when a pass of the cleanup has last done all that it had to do; 0 before the first one.
	CleanupLastSuccess prometheus.Gauge
}

// NewMetrics makes the metrics, their names beginning with prefix, and registers them; a nil reg registers nothing,
// for a connector without metrics. It panics where reg already has the names, as two connectors cannot share them.
func NewMetrics(prefix string, reg prometheus.Registerer) *Metrics {
	return &Metrics{
		CleanupDeleted: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "cleanup_deleted_total", Help: "Rows that were deleted because of their age, by table.",
		}, []string{"table"}),
		CleanupLastSuccess: promauto.With(reg).NewGauge(prometheus.GaugeOpts{
			Name: prefix + "cleanup_last_success_timestamp_seconds", Help: "When the cleanup has last done all that it had to do; 0 if it has not yet.",
		}),
		EventDuration: promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
			Name:    prefix + "event_processing_duration_seconds",
			Help:    "Time from the commit of an event to its acceptance by the sink.",
			Buckets: durationBuckets,
			// The native histogram beside the classic one serves servers that scrape it: finer, and cheap to keep.
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"sink"}),
	}
}

// durationBuckets are the classic buckets in seconds: 1, 2 and 5 by decade around the two figures that are promised
// (p50 2 ms, p99 6 ms), up to what an outage of a minute makes.
var durationBuckets = []float64{
	.0005, .001, .002, .003, .004, .006, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 60,
}

// NewRegistry makes a registry with the collectors of the Go runtime and of the process.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return reg
}
