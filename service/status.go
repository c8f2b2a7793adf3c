package service

import (
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// Status is the state of an OutboxService.
type Status struct {
	ServiceName string `json:"service_name"`
	// Running is true from Start until Stop, or until an error ends the connector.
	Running bool `json:"running"`
	// Report says how the connector does: ok, degraded or failed; whether it is ready, which a degraded one is; whether it streams
	// (monitoring.RoleLeader) or stands by; and how each of its components does.
	monitoring.Report
	// Error is the error that has ended the connector, if one has.
	Error string `json:"error,omitempty"`
}

// GetStatus returns the present state of the service. It does not ask the database.
func (s *OutboxService) GetStatus() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	snapshot := s.status()
	st := Status{ServiceName: s.cfg.Name, Running: s.isRunning(), Report: s.options.Health.ReportOf(&snapshot)}
	if !st.Running && s.current != nil && s.current.err != nil {
		st.Error = s.current.err.Error()
	}
	return st
}

// Outbox reports on sinks and events. It knows only what this process has seen: a replica that stands by counts nothing.
type Outbox struct{ service *OutboxService }

// ProcessorStatus is the state of a sink.
type ProcessorStatus struct {
	Name string `json:"name"`
	Type string `json:"type"`
	// Healthy is true if Status is monitoring.LevelOK.
	Healthy bool `json:"healthy"`
	// Status is monitoring.LevelOK or monitoring.LevelDegraded. It is empty while this process delivers nothing to the sink, because it
	// has not begun, stands by, or has lost PostgreSQL.
	Status monitoring.Level `json:"status,omitempty"`
	// Detail says in one sentence, for a person, how the sink does.
	Detail string `json:"detail,omitempty"`
	// State says in one word what the sink is, as the metric sink_state does. It is empty where Status is.
	State monitoring.State `json:"state,omitempty"`
	// CircuitBreaker is closed, half-open or open.
	CircuitBreaker string `json:"circuit_breaker"`
	// Parked counts the events that wait to be tried again. OldestParked is how long the oldest of them has waited. DeadLetters
	// counts the events that wait for a person. All three are 0 without CountedAt, which is when the events were last counted: nobody
	// knows the numbers in a replica that stands by, or has just begun.
	Parked       int           `json:"parked"`
	OldestParked time.Duration `json:"oldest_parked"`
	DeadLetters  int           `json:"dead_letters"`
	CountedAt    time.Time     `json:"counted_at,omitzero"`
	// InFlight counts the events that were read from the stream and that the sink has not settled.
	InFlight int `json:"in_flight"`
	// LastProcessedAt is when the sink has last accepted an event; zero if it has accepted none since the service was made.
	LastProcessedAt time.Time `json:"last_processed_at,omitzero"`
	// OldestUndelivered is when the oldest event was committed that was read and waits for the sink. It is zero if none waits, and
	// without CountedAt.
	OldestUndelivered time.Time `json:"oldest_undelivered,omitzero"`
}

// GetProcessorStatus returns the state of each sink, in the order of the configuration.
func (o *Outbox) GetProcessorStatus() []ProcessorStatus {
	var all []ProcessorStatus
	for _, sink := range o.service.status().Sinks {
		p := ProcessorStatus{
			Name: sink.Name, Type: sink.Type, CircuitBreaker: sink.Breaker,
			Parked: int(sink.Parked), OldestParked: sink.OldestParked, DeadLetters: int(sink.DeadLetters),
			CountedAt: sink.CountedAt, State: sink.State(), InFlight: sink.InFlight(), LastProcessedAt: sink.Events.DeliveredAt,
			OldestUndelivered: sink.Events.OldestCommittedAt,
		}
		if sink.InSession {
			c := sink.Component()
			p.Healthy, p.Status, p.Detail = c.Status == monitoring.LevelOK, c.Status, c.Detail
		}
		all = append(all, p)
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
	st := o.service.status()
	total := OutboxStats{
		InFlight: st.InFlight, SlotLagBytes: int(st.LagBytes), SlotLag: st.Lag,
		Dead: int(st.Invalid), Discarded: int(st.Unrouted),
	}
	for _, sink := range st.Sinks {
		total.Parked += int(sink.Parked)
		total.DeadLetters += int(sink.DeadLetters)
		total.Delivered += int(sink.Counts.Delivered)
		total.Failed += int(sink.Counts.Failed)
		total.Dead += int(sink.Counts.Dead)
		total.Discarded += int(sink.Counts.Discarded)
	}
	return total
}

// WorkerManager reports on the lanes, which are what the platform calls workers.
type WorkerManager struct{ service *OutboxService }

// WorkerStats are about the workers of one sink.
type WorkerStats struct {
	Processor string `json:"processor"`
	Workers   int    `json:"workers"`
	// Healthy counts the workers that do what they have to do; Lanes says it of each. None does while this process delivers nothing.
	Healthy int `json:"healthy"`
	// CatchingUp counts the workers that deliver parked events. The others deliver new events.
	CatchingUp int `json:"catching_up"`
	// HeldAggregates counts the aggregates whose events wait behind an earlier event that has failed.
	HeldAggregates int `json:"held_aggregates"`
	// Delivered, Failed, Dead and Discarded count tries since the service was made.
	Delivered int `json:"delivered"`
	Failed    int `json:"failed"`
	Dead      int `json:"dead"`
	Discarded int `json:"discarded"`
	// Lanes are the workers that run, by their numbers.
	Lanes []WorkerState `json:"lanes,omitempty"`
}

// WorkerState is the state of a worker.
type WorkerState struct {
	// Healthy is false if the sink has accepted nothing of the worker's last batch and something waits, if the destination is left alone, or if
	// the worker cannot read its parked events. It is what the metric worker_health shows.
	Healthy        bool `json:"healthy"`
	CatchingUp     bool `json:"catching_up"`
	HeldAggregates int  `json:"held_aggregates"`
	InFlight       int  `json:"in_flight"`
	// LastProcessedAt is when the sink has last accepted an event of the worker; zero if it has accepted none since the worker runs.
	LastProcessedAt time.Time `json:"last_processed_at,omitzero"`
}

// GetWorkerStats returns what the workers of each sink do and have done, in the order of the configuration.
func (w *WorkerManager) GetWorkerStats() []WorkerStats {
	var all []WorkerStats
	for _, sink := range w.service.status().Sinks {
		n := sink.Counts
		all = append(all, WorkerStats{
			Processor: sink.Name, Workers: w.service.cfg.Delivery.Lanes, Healthy: sink.Working(), Lanes: workersOf(&sink), CatchingUp: sink.CatchingUp(), HeldAggregates: sink.Held(),
			Delivered: int(n.Delivered), Failed: int(n.Failed), Dead: int(n.Dead), Discarded: int(n.Discarded),
		})
	}
	return all
}

func workersOf(sink *monitoring.SinkStatus) (all []WorkerState) {
	for i := range sink.Lanes {
		l := &sink.Lanes[i]
		all = append(all, WorkerState{
			Healthy: sink.Works(l), CatchingUp: l.CatchingUp, HeldAggregates: l.Held, InFlight: l.InFlight, LastProcessedAt: l.DeliveredAt,
		})
	}
	return all
}

// status returns the state of the connector, which is the last one if none runs. Its counters go on from one Start to the next.
func (s *OutboxService) status() monitoring.Status {
	st, none := s.tally.status()
	if none {
		for _, sink := range s.sinks {
			st.Sinks = append(st.Sinks, monitoring.SinkStatus{
				Name: sink.Name, Type: sink.Type, Breaker: "closed",
				Objective: monitoring.ObjectiveStatus{Within: sink.Objective.Within, Ratio: sink.Objective.Ratio},
			})
		}
	}
	return st
}
