package service

import (
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// Status is the state of an OutboxService.
type Status struct {
	ServiceName string `json:"service_name"`
	// Running is true from Start until Stop, or until an error ends the connector.
	Running bool `json:"running"`
	// Report says whether the connector is ready, whether it streams (monitoring.RoleLeader) or stands by, and whether
	// each of its components works.
	monitoring.Report
	// Error is the error that has ended the connector, if one has.
	Error string `json:"error,omitempty"`
}

// GetStatus returns the present state of the service. It does not ask the database.
func (s *OutboxService) GetStatus() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{ServiceName: s.cfg.Name, Running: s.isRunning(), Report: s.options.Health.Report()}
	if !st.Running && s.current != nil && s.current.err != nil {
		st.Error = s.current.err.Error()
	}
	return st
}

// Outbox reports on sinks and events. It knows only what this process has seen: a replica that stands by counts nothing.
type Outbox struct{ service *OutboxService }

// ProcessorStatus is the state of a sink.
type ProcessorStatus struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Healthy bool   `json:"healthy"`
	// Detail says in one sentence, for a person, how the sink does.
	Detail string `json:"detail,omitempty"`
	// CircuitBreaker is closed, half-open or open.
	CircuitBreaker string `json:"circuit_breaker"`
	// Parked counts the events that wait to be tried again. OldestParked is how long the oldest of them has waited. DeadLetters
	// counts the events that wait for a person.
	Parked       int           `json:"parked"`
	OldestParked time.Duration `json:"oldest_parked"`
	DeadLetters  int           `json:"dead_letters"`
}

// GetProcessorStatus returns the state of each sink, in the order of the configuration.
func (o *Outbox) GetProcessorStatus() []ProcessorStatus {
	components := o.service.options.Health.Report().Components
	v := o.service.metricValues()
	all := make([]ProcessorStatus, 0, len(o.service.sinks))
	for _, sink := range o.service.sinks {
		component := components["sink:"+sink.Name]
		all = append(all, ProcessorStatus{
			Name: sink.Name, Type: sink.Type, Healthy: component.OK, Detail: component.Detail,
			CircuitBreaker: map[float64]string{0: "closed", 1: "half-open", 2: "open"}[v.sum("circuit_breaker_state", "sink="+sink.Name)],
			Parked:         v.count("parked_events", "sink="+sink.Name),
			OldestParked:   seconds(v.sum("oldest_parked_age_seconds", "sink="+sink.Name)),
			DeadLetters:    v.count("dead_letters", "sink="+sink.Name),
		})
	}
	return all
}

// OutboxStats count what waits and what became of events, for all sinks together.
type OutboxStats struct {
	// InFlight counts the events that were read from the stream and are not settled.
	InFlight int `json:"in_flight"`
	// SlotLagBytes is how much WAL the slot has not confirmed. SlotLag is the age of the last settled transaction. Both are 0
	// while nothing waits.
	SlotLagBytes int           `json:"slot_lag_bytes"`
	SlotLag      time.Duration `json:"slot_lag"`
	// Parked counts the deliveries that wait to be tried again, and DeadLetters those that wait for a person.
	Parked      int `json:"parked"`
	DeadLetters int `json:"dead_letters"`
	// Delivered, Failed, Dead and Discarded count tries since the service was made. A delivery that has failed is tried again.
	Delivered int `json:"delivered"`
	Failed    int `json:"failed"`
	Dead      int `json:"dead"`
	Discarded int `json:"discarded"`
}

// GetStats returns the numbers as they were last measured.
func (o *Outbox) GetStats() OutboxStats {
	v := o.service.metricValues()
	return OutboxStats{
		InFlight: v.count("in_flight"), SlotLagBytes: v.count("slot_lag_bytes"), SlotLag: seconds(v.sum("slot_lag_seconds")),
		Parked: v.count("parked_events"), DeadLetters: v.count("dead_letters"),
		Delivered: v.count(processedTotal, "status=delivered"), Failed: v.count(processedTotal, "status=failed"),
		Dead: v.count(processedTotal, "status=dead"), Discarded: v.count(processedTotal, "status=discarded"),
	}
}

// WorkerManager reports on the lanes, which are what the platform calls workers.
type WorkerManager struct{ service *OutboxService }

// WorkerStats are about the workers of one sink.
type WorkerStats struct {
	Processor string `json:"processor"`
	Workers   int    `json:"workers"`
	// CatchingUp counts the workers that deliver parked events. The others deliver new events.
	CatchingUp int `json:"catching_up"`
	// HeldAggregates counts the aggregates whose events wait behind an earlier event that has failed.
	HeldAggregates int `json:"held_aggregates"`
	// Delivered, Failed, Dead and Discarded count tries since the service was made.
	Delivered int `json:"delivered"`
	Failed    int `json:"failed"`
	Dead      int `json:"dead"`
	Discarded int `json:"discarded"`
}

// GetWorkerStats returns what the workers of each sink do and have done, in the order of the configuration.
func (w *WorkerManager) GetWorkerStats() []WorkerStats {
	v := w.service.metricValues()
	all := make([]WorkerStats, 0, len(w.service.sinks))
	for _, sink := range w.service.sinks {
		all = append(all, WorkerStats{
			Processor: sink.Name, Workers: w.service.cfg.Delivery.Lanes,
			CatchingUp: v.count("lanes_catching_up", "sink="+sink.Name), HeldAggregates: v.count("held_aggregates", "sink="+sink.Name),
			Delivered: v.count(processedTotal, "sink="+sink.Name, "status=delivered"), Failed: v.count(processedTotal, "sink="+sink.Name, "status=failed"),
			Dead: v.count(processedTotal, "sink="+sink.Name, "status=dead"), Discarded: v.count(processedTotal, "sink="+sink.Name, "status=discarded"),
		})
	}
	return all
}

const processedTotal = "events_processed_total"

// metricValues are the values of counters and gauges.
type metricValues []metricValue

type metricValue struct {
	name   string   // without the configured prefix
	labels []string // each is name=value
	value  float64
}

// metricValues reads the metrics of the connector. They hold all the numbers that are reported here.
func (s *OutboxService) metricValues() (all metricValues) {
	families, err := s.metrics.Gather()
	if err != nil { // cannot happen: all collectors are our own, and do not contradict each other
		panic(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			v := metricValue{name: strings.TrimPrefix(f.GetName(), s.cfg.Metrics.Prefix), value: m.GetGauge().GetValue() + m.GetCounter().GetValue()}
			for _, l := range m.GetLabel() {
				v.labels = append(v.labels, l.GetName()+"="+l.GetValue())
			}
			all = append(all, v)
		}
	}
	return all
}

// sum adds up the values of a metric that have all these labels.
func (v metricValues) sum(name string, labels ...string) (total float64) {
next:
	for _, x := range v {
		if x.name != name {
			continue
		}
		for _, l := range labels {
			if !slices.Contains(x.labels, l) {
				continue next
			}
		}
		total += x.value
	}
	return total
}

func (v metricValues) count(name string, labels ...string) int { return int(v.sum(name, labels...)) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
