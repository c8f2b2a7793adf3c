package monitoring

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
)

// NewBuildInfo makes the metric build_info, which is always 1. Its labels say which build this is.
func NewBuildInfo(prefix string) prometheus.Collector {
	v := buildinfo.Read()
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        prefix + "build_info",
		Help:        "1; the labels say which build of outbox-cdc this is. An empty commit is not known.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "go_version": v.Go},
	}, func() float64 { return 1 })
}
