package monitoring

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Collector is a prometheus.Collector that makes the metrics of a connector from its Status. It takes one snapshot for each scrape.
type Collector struct {
	status    func() Status
	connector []connectorMetric
	sinks     []sinkMetric
	processed *prometheus.Desc // outcomes, by sink
	taken     *prometheus.Desc // deliveries that a member of a composite has accepted
	away      *prometheus.Desc // whether that member is away
}

// connectorMetric is a metric of the whole connector.
type connectorMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(Status) float64
}

// sinkMetric is a gauge that each sink has.
type sinkMetric struct {
	desc  *prometheus.Desc
	value func(SinkStatus) float64
	// counted says that the value is of rows, so that there is none while nobody knows them: see SinkStatus.CountedAt. A standby that showed
	// 0, or what it has known as the leader, would look as if nothing waited, or as if it waited twice.
	counted bool
}

// NewCollector makes the collector of the metrics whose names begin with prefix. Each scrape calls status, which may not wait
// for anything. Without a connector, status returns the zero Status.
func NewCollector(prefix string, status func() Status) *Collector {
	c := &Collector{status: status}
	c.processed = prometheus.NewDesc(prefix+"events_processed_total",
		"Outcomes of deliveries: delivered, failed (one try, to be tried again), dead (given up) or discarded (by no route, or by a sink that is tried once).",
		[]string{"sink", "status"}, nil)
	c.taken = prometheus.NewDesc(prefix+"member_delivered_total", "Deliveries of a composite sink, by the member that has accepted them.",
		[]string{"sink", "member"}, nil)
	c.away = prometheus.NewDesc(prefix+"member_away", "1 while a member of a composite sink is away: its last call has answered nothing.",
		[]string{"sink", "member"}, nil)
	one := func(kind prometheus.ValueType, name, help string, value func(Status) float64) {
		c.connector = append(c.connector, connectorMetric{prometheus.NewDesc(prefix+name, help, nil, nil), kind, value})
	}
	one(prometheus.GaugeValue, "slot_lag_bytes", "Bytes of WAL that the replication slot has not confirmed.",
		func(s Status) float64 { return float64(s.LagBytes) })
	one(prometheus.GaugeValue, "slot_lag_seconds", "Age of the last transaction settled; 0 when nothing is known to wait.",
		func(s Status) float64 { return s.Lag.Seconds() })
	one(prometheus.GaugeValue, "in_flight", "Events read from the WAL and not yet settled.",
		func(s Status) float64 { return float64(s.InFlight) })
	// More than a few sessions an hour mean a connection that flaps.
	one(prometheus.CounterValue, "sessions_total", "Replication sessions begun.",
		func(s Status) float64 { return float64(s.Sessions) })
	one(prometheus.GaugeValue, "leader", "1 while this process streams from the slot, 0 while it stands by.",
		func(s Status) float64 { return map[bool]float64{true: 1}[s.Streaming] })

	bySink := func(name, help string, value func(SinkStatus) float64) {
		c.sinks = append(c.sinks, sinkMetric{desc: prometheus.NewDesc(prefix+name, help, []string{"sink"}, nil), value: value})
	}
	ofRows := func(name, help string, value func(SinkStatus) float64) {
		bySink(name, help, value)
		c.sinks[len(c.sinks)-1].counted = true
	}
	ofRows("parked_events", "Deliveries that wait in outbox_parked.", func(s SinkStatus) float64 { return float64(s.Parked) })
	ofRows("dead_letters", "Dead letters in outbox_parked, kept for a person.", func(s SinkStatus) float64 { return float64(s.DeadLetters) })
	ofRows("oldest_parked_age_seconds", "Age of the oldest delivery that waits in outbox_parked; 0 without one.",
		func(s SinkStatus) float64 { return s.OldestParked.Seconds() })
	bySink("held_aggregates", "Aggregates held behind a delivery that failed.", func(s SinkStatus) float64 { return float64(s.Held) })
	bySink("lanes_catching_up", "Lanes that deliver from outbox_parked; the others are live.",
		func(s SinkStatus) float64 { return float64(s.CatchingUp) })
	bySink("circuit_breaker_state", "0 closed, 1 half open, 2 open.",
		func(s SinkStatus) float64 { return map[string]float64{"half-open": 1, "open": 2}[s.Breaker] })
	bySink("sink_suspect", "1 while what would become a dead letter is parked, because several have died since the sink last accepted a message.",
		func(s SinkStatus) float64 { return map[bool]float64{true: 1}[!s.SuspectSince.IsZero()] })
	return c
}

// Describe sends the descriptions of all metrics.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.processed
	out <- c.taken
	out <- c.away
	for _, m := range c.connector {
		out <- m.desc
	}
	for _, m := range c.sinks {
		out <- m.desc
	}
}

// Collect sends all metrics, made from one snapshot. A sink has all of its counters from the beginning: a rate over a counter that
// appears with its first event would miss that event.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	s := c.status()
	for _, m := range c.connector {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s))
	}
	count := func(n int64, sink, status string) {
		out <- prometheus.MustNewConstMetric(c.processed, prometheus.CounterValue, float64(n), sink, status)
	}
	if len(s.Sinks) > 0 { // without a connector there is nothing to count
		count(s.Invalid, "none", "dead")
		count(s.Unrouted, "none", "discarded")
	}
	for _, sink := range s.Sinks {
		for _, m := range c.sinks {
			if m.counted && sink.CountedAt.IsZero() {
				continue
			}
			out <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, m.value(sink), sink.Name)
		}
		count(sink.Counts.Delivered, sink.Name, "delivered")
		count(sink.Counts.Failed, sink.Name, "failed")
		count(sink.Counts.Dead, sink.Name, "dead")
		count(sink.Counts.Discarded, sink.Name, "discarded")
		for _, m := range sink.Members {
			out <- prometheus.MustNewConstMetric(c.taken, prometheus.CounterValue, float64(m.Delivered), sink.Name, m.Name)
			out <- prometheus.MustNewConstMetric(c.away, prometheus.GaugeValue, map[bool]float64{true: 1}[m.Away], sink.Name, m.Name)
		}
	}
}
