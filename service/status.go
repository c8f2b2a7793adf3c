package service

import (
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// Status is how an OutboxService does.
type Status struct {
	ServiceName string `json:"service_name"`
	// Running is from Start to Stop, or to an error that ends the connector.
	Running bool `json:"running"`
	// Report says whether it is ready, whether it streams (monitoring.RoleLeader) or stands by, and how its parts do.
	monitoring.Report
	// Error is with what the connector has ended, if with one.
	Error string `json:"error,omitempty"`
}

// GetStatus tells how the service does, at this moment and without asking the database.
func (s *OutboxService) GetStatus() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{ServiceName: s.cfg.Name, Running: s.running(), Report: s.parts.Health.Report()}
	if !st.Running && s.current != nil && s.current.err != nil {
		st.Error = s.current.err.Error()
	}
	return st
}

// Outbox tells of the events. What it tells is known to this process: a replica that stands by counts nothing.
type Outbox struct{ service *OutboxService }

// ProcessorStatus is how a sink does.
type ProcessorStatus struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Healthy bool   `json:"healthy"`
	// Detail is one sentence for a person.
	Detail string `json:"detail,omitempty"`
	// CircuitBreaker is closed, half-open or open.
	CircuitBreaker string `json:"circuit_breaker"`
	// Parked events wait to be tried again, the oldest of them for OldestParked; DeadLetters wait for a person.
	Parked       int           `json:"parked"`
	OldestParked time.Duration `json:"oldest_parked"`
	DeadLetters  int           `json:"dead_letters"`
}

// GetProcessorStatus tells how each sink does, in the order of the configuration.
func (o *Outbox) GetProcessorStatus() []ProcessorStatus {
	components := o.service.parts.Health.Report().Components
	v := o.service.values()
	all := make([]ProcessorStatus, 0, len(o.service.sinks))
	for _, sink := range o.service.sinks {
		component := components["sink:"+sink.Name]
		all = append(all, ProcessorStatus{
			Name: sink.Name, Type: sink.Type, Healthy: component.OK, Detail: component.Detail,
			CircuitBreaker: map[float64]string{0: "closed", 1: "half-open", 2: "open"}[v.of("circuit_breaker_state", "sink="+sink.Name)],
			Parked:         v.count("parked_events", "sink="+sink.Name),
			OldestParked:   seconds(v.of("oldest_parked_age_seconds", "sink="+sink.Name)),
			DeadLetters:    v.count("dead_letters", "sink="+sink.Name),
		})
	}
	return all
}

// OutboxStats are the queue and what became of events, of all sinks together.
type OutboxStats struct {
	// InFlight events are read and not settled.
	InFlight int `json:"in_flight"`
	// SlotLagBytes is the WAL that the slot has not confirmed, SlotLag the age of the last transaction settled; both are 0
	// while nothing waits.
	SlotLagBytes int           `json:"slot_lag_bytes"`
	SlotLag      time.Duration `json:"slot_lag"`
	// Parked deliveries wait to be tried again, DeadLetters for a person.
	Parked      int `json:"parked"`
	DeadLetters int `json:"dead_letters"`
	// Deliveries since the service was made: a try that failed is tried again.
	Delivered int `json:"delivered"`
	Failed    int `json:"failed"`
	Dead      int `json:"dead"`
	Discarded int `json:"discarded"`
}

// GetStats tells the depth of the queue, as it was last measured.
func (o *Outbox) GetStats() OutboxStats {
	v := o.service.values()
	return OutboxStats{
		InFlight: v.count("in_flight"), SlotLagBytes: v.count("slot_lag_bytes"), SlotLag: seconds(v.of("slot_lag_seconds")),
		Parked: v.count("parked_events"), DeadLetters: v.count("dead_letters"),
		Delivered: v.count(processed, "status=delivered"), Failed: v.count(processed, "status=failed"),
		Dead: v.count(processed, "status=dead"), Discarded: v.count(processed, "status=discarded"),
	}
}

// WorkerManager tells of the lanes, which are this connector's workers.
type WorkerManager struct{ service *OutboxService }

// WorkerStats are those of a sink's workers.
type WorkerStats struct {
	Processor string `json:"processor"`
	Workers   int    `json:"workers"`
	// CatchingUp workers deliver what was parked; the others are live.
	CatchingUp int `json:"catching_up"`
	// HeldAggregates wait behind an event of theirs that failed.
	HeldAggregates int `json:"held_aggregates"`
	// Deliveries since the service was made.
	Delivered int `json:"delivered"`
	Failed    int `json:"failed"`
	Dead      int `json:"dead"`
	Discarded int `json:"discarded"`
}

// GetWorkerStats tells what the workers of each sink have done, in the order of the configuration.
func (w *WorkerManager) GetWorkerStats() []WorkerStats {
	v := w.service.values()
	all := make([]WorkerStats, 0, len(w.service.sinks))
	for _, sink := range w.service.sinks {
		all = append(all, WorkerStats{
			Processor: sink.Name, Workers: w.service.cfg.Delivery.Lanes,
			CatchingUp: v.count("lanes_catching_up", "sink="+sink.Name), HeldAggregates: v.count("held_aggregates", "sink="+sink.Name),
			Delivered: v.count(processed, "sink="+sink.Name, "status=delivered"), Failed: v.count(processed, "sink="+sink.Name, "status=failed"),
			Dead: v.count(processed, "sink="+sink.Name, "status=dead"), Discarded: v.count(processed, "sink="+sink.Name, "status=discarded"),
		})
	}
	return all
}

const processed = "events_processed_total"

// values are those of counters and gauges.
type values []value

type value struct {
	name   string
	labels []string // name=value
	value  float64
}

// values reads the metrics, which every part of the connector sets anyway.
func (s *OutboxService) values() (all values) {
	families, err := s.metrics.Gather()
	if err != nil { // of collectors of our own, which cannot contradict each other
		panic(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			v := value{name: strings.TrimPrefix(f.GetName(), s.cfg.Metrics.Prefix), value: m.GetGauge().GetValue() + m.GetCounter().GetValue()}
			for _, l := range m.GetLabel() {
				v.labels = append(v.labels, l.GetName()+"="+l.GetValue())
			}
			all = append(all, v)
		}
	}
	return all
}

// of sums up what has all these labels.
func (v values) of(name string, labels ...string) (sum float64) {
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
		sum += x.value
	}
	return sum
}

func (v values) count(name string, labels ...string) int { return int(v.of(name, labels...)) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
