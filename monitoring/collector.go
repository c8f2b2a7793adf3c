package monitoring

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Collector is a prometheus.Collector that makes the metrics of a connector from its Status. It takes one snapshot for each scrape.
type Collector struct {
	status func() Status
	all    []described
}

// described is a row of the table with its description for Prometheus.
type described struct {
	Family
	desc *prometheus.Desc
}

// NewCollector makes the collector of the metrics whose names begin with prefix. Each scrape calls status, which may not wait
// for anything. Without a connector, status returns the zero Status.
func NewCollector(prefix string, status func() Status) *Collector {
	c := &Collector{status: status}
	for _, f := range families() {
		if f.collect != nil {
			c.all = append(c.all, described{f, prometheus.NewDesc(prefix+f.Name, f.Help, f.Labels, nil)})
		}
	}
	return c
}

// Describe sends the descriptions of all metrics.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for i := range c.all {
		out <- c.all[i].desc
	}
}

// Collect sends all metrics, made from one snapshot.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	s := c.status()
	for i := range c.all {
		m := &c.all[i]
		kind := prometheus.GaugeValue
		if m.Type == Counter {
			kind = prometheus.CounterValue
		}
		m.collect(&s, func(value float64, labels ...string) {
			out <- prometheus.MustNewConstMetric(m.desc, kind, value, labels...)
		})
	}
}
