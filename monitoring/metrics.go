// Package monitoring tells the outside how the connector does: metrics, health, and the HTTP server that shows both.
// It has the names of metrics and components, and measures nothing itself: package connector makes the Status that is shown.
package monitoring

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics holds what a connector measures event by event. A Collector makes all other metrics from the connector's Status. The table of
// Catalogue says what each is.
type Metrics struct {
	EventDuration   *prometheus.HistogramVec // by sink
	StageDuration   *prometheus.HistogramVec // by stage
	DeliverDuration *prometheus.HistogramVec // by sink
	BatchEvents     *prometheus.HistogramVec // by sink
	RecorderCommit  prometheus.Observer
	CleanupDeleted  *prometheus.CounterVec // by table
	// CleanupLastSuccess has no labels, and no series where nothing is to be deleted.
	CleanupLastSuccess *prometheus.GaugeVec
}

// NewMetrics makes the metrics, their names beginning with prefix, and registers them; a nil reg registers nothing,
// for a connector without metrics. It panics where reg already has the names, as two connectors cannot share them. within are the
// objectives' times: EventDuration has a classic bucket that ends exactly at each.
func NewMetrics(prefix string, reg prometheus.Registerer, within ...time.Duration) *Metrics {
	m := maker{prefix: prefix, to: promauto.With(reg), families: map[string]Family{}}
	for _, f := range families() {
		if f.Name == "event_processing_duration_seconds" {
			f.buckets = withBuckets(f.buckets, within)
		}
		m.families[f.Name] = f
	}
	metrics := &Metrics{
		EventDuration:      m.histogram("event_processing_duration_seconds"),
		StageDuration:      m.histogram("stage_duration_seconds"),
		DeliverDuration:    m.histogram("deliver_duration_seconds"),
		BatchEvents:        m.histogram("batch_events"),
		RecorderCommit:     m.histogram("recorder_commit_seconds").WithLabelValues(),
		CleanupDeleted:     m.counter("cleanup_deleted_total"),
		CleanupLastSuccess: m.gauge("cleanup_last_success_timestamp_seconds"),
	}
	metrics.CleanupLastSuccess.WithLabelValues()
	// The first scrape shows these series: a rate misses that with which a series appears.
	for _, table := range []string{"event_outbox", "outbox_metrics"} {
		metrics.CleanupDeleted.WithLabelValues(table)
	}
	for _, stage := range []string{StageDecode, StageQueue, StageDeliver, StageRecord, StageConfirm} {
		metrics.StageDuration.WithLabelValues(stage)
	}
	return metrics
}

// withBuckets returns the buckets and one that ends at each of these times.
func withBuckets(buckets []float64, within []time.Duration) []float64 {
	all := slices.Clone(buckets)
	for _, d := range within {
		all = append(all, d.Seconds())
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// maker makes metrics of rows of the table.
type maker struct {
	prefix   string
	to       promauto.Factory
	families map[string]Family // by name
}

func (m maker) counter(name string) *prometheus.CounterVec {
	f := m.families[name]
	return m.to.NewCounterVec(prometheus.CounterOpts{Name: m.prefix + f.Name, Help: f.Help}, f.Labels)
}

func (m maker) gauge(name string) *prometheus.GaugeVec {
	f := m.families[name]
	return m.to.NewGaugeVec(prometheus.GaugeOpts{Name: m.prefix + f.Name, Help: f.Help}, f.Labels)
}

// histogram makes a native histogram beside the classic one: it is finer, and cheap to keep. Servers that scrape native histograms take it.
func (m maker) histogram(name string) *prometheus.HistogramVec {
	f := m.families[name]
	return m.to.NewHistogramVec(prometheus.HistogramOpts{
		Name: m.prefix + f.Name, Help: f.Help, Buckets: f.buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	}, f.Labels)
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
