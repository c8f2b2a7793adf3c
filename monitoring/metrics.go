// Package monitoring tells the outside how the connector does: metrics, health, and the HTTP server that shows both.
// It has the names of metrics and components, and measures nothing itself: the other packages set the values.
package monitoring

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics holds every collector of one connector. Labels are the names of configured sinks and a handful of outcomes:
// never anything that comes from an event, so the number of series is bounded by the configuration.
type Metrics struct {
	// EventsProcessed counts outcomes by {sink, status}. Sink gives its children.
	EventsProcessed *prometheus.CounterVec
	// EventDuration is the time from commit (PostgreSQL's clock) to the sink's acceptance, by {sink}.
	EventDuration *prometheus.HistogramVec
	// Of outbox_parked by {sink}, as last counted: rows parked and dead, and the age of the oldest parked one.
	Parked, DeadLetters, OldestParked *prometheus.GaugeVec
	// HeldAggregates is the number of aggregates by {sink} that a live lane holds behind a failure.
	HeldAggregates *prometheus.GaugeVec
	// CatchingUp is the number of lanes by {sink} that deliver from outbox_parked.
	CatchingUp *prometheus.GaugeVec
	// BreakerState by {sink}: 0 closed, 1 half open, 2 open.
	BreakerState *prometheus.GaugeVec
	// SlotLagBytes is the WAL between the server's insert position and what the slot has confirmed.
	SlotLagBytes prometheus.Gauge
	// SlotLagSeconds is now less the commit time of the last transaction settled; 0 when nothing unsettled is known. While
	// nobody reads the stream it is the time since somebody last did, if that is longer.
	SlotLagSeconds prometheus.Gauge
	// InFlight is the number of events that were read and are not settled.
	InFlight prometheus.Gauge
	// Sessions counts replication sessions begun. More than a few an hour is a flapping connection.
	Sessions prometheus.Counter
	// Leader is 1 while this process streams from the slot, 0 while it stands by.
	Leader prometheus.Gauge
}

// NewMetrics makes the collectors, their names beginning with prefix, and registers them; a nil reg registers nothing,
// for a connector without metrics. It panics where reg already has the names, as two connectors cannot share them.
func NewMetrics(prefix string, reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
	}
	bySink := func(name, help string) *prometheus.GaugeVec {
		return auto.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + name, Help: help}, []string{"sink"})
	}
	return &Metrics{
		EventsProcessed: auto.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "events_processed_total",
			Help: "Outcomes of deliveries: delivered, failed (one try, to be tried again), dead (given up) or discarded (by no route, or by a sink that is tried once).",
		}, []string{"sink", "status"}),
		EventDuration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name:    prefix + "event_processing_duration_seconds",
			Help:    "Time from the commit of an event to its acceptance by the sink.",
			Buckets: durationBuckets,
			// The native histogram beside the classic one serves servers that scrape it: finer, and cheap to keep.
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"sink"}),
		Parked:         bySink("parked_events", "Deliveries that wait in outbox_parked."),
		DeadLetters:    bySink("dead_letters", "Dead letters in outbox_parked, kept for a person."),
		OldestParked:   bySink("oldest_parked_age_seconds", "Age of the oldest delivery that waits in outbox_parked; 0 without one."),
		HeldAggregates: bySink("held_aggregates", "Aggregates held behind a delivery that failed."),
		CatchingUp:     bySink("lanes_catching_up", "Lanes that deliver from outbox_parked; the others are live."),
		BreakerState:   bySink("circuit_breaker_state", "0 closed, 1 half open, 2 open."),
		SlotLagBytes:   gauge("slot_lag_bytes", "Bytes of WAL that the replication slot has not confirmed."),
		SlotLagSeconds: gauge("slot_lag_seconds", "Age of the last transaction settled; 0 when nothing is known to wait."),
		InFlight:       gauge("in_flight", "Events read from the WAL and not yet settled."),
		Sessions: auto.NewCounter(prometheus.CounterOpts{
			Name: prefix + "sessions_total", Help: "Replication sessions begun.",
		}),
		Leader: gauge("leader", "1 while this process streams from the slot, 0 while it stands by."),
	}
}

// durationBuckets are the classic buckets in seconds: 1, 2 and 5 by decade around the two figures that are promised
// (p50 2 ms, p99 6 ms), up to what an outage of a minute makes.
var durationBuckets = []float64{
	.0005, .001, .002, .003, .004, .006, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 60,
}

// SinkMetrics are the children of one sink, looked up once so that the path of an event does no hashing of labels.
type SinkMetrics struct {
	Delivered, Failed, Dead, Discarded prometheus.Counter
	Duration                           prometheus.Observer

	Parked, DeadLetters, OldestParked, Held, CatchingUp, Breaker prometheus.Gauge
}

// Sink gives the children of the sink called name. They exist, at 0, from then on: a rate over a counter that appears
// with its first event would miss that event.
func (m *Metrics) Sink(name string) SinkMetrics {
	return SinkMetrics{
		Delivered: m.EventsProcessed.WithLabelValues(name, "delivered"),
		Failed:    m.EventsProcessed.WithLabelValues(name, "failed"),
		Dead:      m.EventsProcessed.WithLabelValues(name, "dead"),
		Discarded: m.EventsProcessed.WithLabelValues(name, "discarded"),
		Duration:  m.EventDuration.WithLabelValues(name),

		Parked:       m.Parked.WithLabelValues(name),
		DeadLetters:  m.DeadLetters.WithLabelValues(name),
		OldestParked: m.OldestParked.WithLabelValues(name),
		Held:         m.HeldAggregates.WithLabelValues(name),
		CatchingUp:   m.CatchingUp.WithLabelValues(name),
		Breaker:      m.BreakerState.WithLabelValues(name),
	}
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
