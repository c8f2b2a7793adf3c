package monitoring

import "strconv"

// sinkFamilies say how each sink does.
var sinkFamilies = []Family{
	{
		Name: "sink_state", Type: Gauge, Labels: []string{"sink", "state"}, Unit: "0 or 1",
		Help: "1 for the state that the sink is in, 0 for the others: ok, catching_up (what was parked is delivered), degraded (it fails, is " +
			"unreachable or refuses everything), away (left alone, its breaker is not closed), suspect (it refuses everything for good) or paused " +
			"(by a person). Absent without a session.",
		Investigate: "It is neither ok nor catching_up for minutes: outbox-cdc status says why, and since when.",
		collect:     sinkStates,
	},
	{
		Name: "worker_health", Type: Gauge, Labels: []string{"sink", "lane"}, Unit: "0 or 1",
		Help: "1 while a lane does what it has to do; 0 while its session does not run, the destination is left alone, its parked rows cannot be read, or " +
			"the sink has accepted nothing of the lane's last batch and something waits in the lane. Absent in a process that stands by.",
		Investigate: "It is 0 for minutes: for all lanes of a sink, look at sink_state; for one, at dlq list.",
		collect:     workers,
	},
	{
		Name: "in_flight", Type: Gauge, Labels: []string{"sink"}, Unit: "deliveries",
		Help: "Deliveries that the lanes of the sink were given from the stream, and that are not settled. events_in_queue{status=\"pending\"} counts " +
			"events, each once for all sinks. Absent without a session.",
		Investigate: "One sink has most of what is in flight for minutes: the others wait for it.",
		collect: func(s *Status, emit emit) {
			for i := range s.Sinks {
				if sink := &s.Sinks[i]; sink.InSession {
					emit(float64(sink.InFlight()), sink.Name)
				}
			}
		},
	},
	{
		Name: "oldest_undelivered_timestamp_seconds", Type: Gauge, Labels: []string{"sink"}, Unit: "seconds since 1970",
		Help: "Commit time of the oldest event that was read from the WAL and waits for the sink, in a lane or parked. It is the present time while none " +
			"waits. Dead letters do not count. Absent while nobody knows: without a session, and before the parked rows are counted.",
		Investigate: "It stands still: time() minus it says for how long somebody has waited for that event. dlq list shows what is parked, and why.",
		collect: func(s *Status, emit emit) {
			for i := range s.Sinks {
				if sink := &s.Sinks[i]; sink.KnowsWhatWaits() {
					at := sink.Events.OldestCommittedAt
					if at.IsZero() {
						at = s.At
					}
					emit(timestamp(at), sink.Name)
				}
			}
		},
	},
	{
		Name: "parked_events", Type: Gauge, Labels: []string{"sink"}, Unit: "events",
		Help:        "Deliveries that wait in outbox_parked.",
		Investigate: "It grows: the sink refuses messages or is away. outbox-cdc dlq list shows the causes.",
		collect:     ofRows(func(s *SinkStatus) float64 { return float64(s.Parked) }),
	},
	{
		Name: "dead_letters", Type: Gauge, Labels: []string{"sink"}, Unit: "events",
		Help:        "Dead letters in outbox_parked, kept for a person.",
		Investigate: "It is not 0: each of them waits for outbox-cdc dlq retry or dlq discard.",
		collect:     ofRows(func(s *SinkStatus) float64 { return float64(s.DeadLetters) }),
	},
	{
		Name: "oldest_parked_age_seconds", Type: Gauge, Labels: []string{"sink"}, Unit: "seconds",
		Help:        "Age of the oldest delivery that waits in outbox_parked; 0 without one.",
		Investigate: "It is more than an hour: what waits will not leave by itself.",
		collect:     ofRows(func(s *SinkStatus) float64 { return s.OldestParked.Seconds() }),
	},
	{
		Name: "held_aggregates", Type: Gauge, Labels: []string{"sink"}, Unit: "aggregates",
		Help:        "Aggregates held behind a delivery that failed.",
		Investigate: "It grows while the sink accepts other messages: it refuses some messages of many aggregates.",
		collect:     ofSinks(func(s *SinkStatus) float64 { return float64(s.Held()) }),
	},
	{
		Name: "lanes_catching_up", Type: Gauge, Labels: []string{"sink"}, Unit: "lanes",
		Help:        "Lanes that deliver from outbox_parked; the others are live.",
		Investigate: "It stays up for long after an outage: what was parked is delivered slower than new events come.",
		collect:     ofSinks(func(s *SinkStatus) float64 { return float64(s.CatchingUp()) }),
	},
	{
		Name: "circuit_breaker_state", Type: Gauge, Labels: []string{"sink"}, Unit: "0, 1 or 2",
		Help:        "0 closed, 1 half open, 2 open.",
		Investigate: "It is 2 for minutes, or changes all the time: the destination is away, or flaps.",
		collect: ofSinks(func(s *SinkStatus) float64 {
			return map[string]float64{"half-open": 1, "open": 2}[s.Breaker]
		}),
	},
	{
		Name: "sink_suspect", Type: Gauge, Labels: []string{"sink"}, Unit: "0 or 1",
		Help:        "1 while what would become a dead letter is parked, because several have died since the sink last accepted a message.",
		Investigate: "It is 1: the receiver refuses everything for good. Its own log, and the cause in /readyz, say why.",
		collect:     ofSinks(func(s *SinkStatus) float64 { return asNumber[!s.SuspectSince.IsZero()] }),
	},
	{
		Name: "member_delivered_total", Type: Counter, Labels: []string{"sink", "member"}, Unit: "events",
		Help:        "Deliveries of a composite sink, by the member that has accepted them.",
		Investigate: "A later member takes most of them: the first one is away or refuses.",
		collect:     ofMembers(func(m *MemberStatus) float64 { return float64(m.Delivered) }),
	},
	{
		Name: "member_away", Type: Gauge, Labels: []string{"sink", "member"}, Unit: "0 or 1",
		Help:        "1 while a member of a composite sink is away: its last call has answered nothing.",
		Investigate: "It is 1 for minutes: the sink goes on by its other members.",
		collect:     ofMembers(func(m *MemberStatus) float64 { return asNumber[m.Away] }),
	},
}

// sinkStates sends a series for each state of each sink.
func sinkStates(s *Status, emit emit) {
	for i := range s.Sinks {
		sink := &s.Sinks[i]
		if now := sink.State(); now != "" {
			for _, state := range States() {
				emit(asNumber[state == now], sink.Name, string(state))
			}
		}
	}
}

// workers sends how each lane does. A process that stands by has no lanes, and is well. Another process without a session has none that run.
func workers(s *Status, emit emit) {
	if s.Role == RoleStandby {
		return
	}
	for i := range s.Sinks {
		sink := &s.Sinks[i]
		for n := range max(s.LanesPerSink, len(sink.Lanes)) {
			emit(asNumber[n < len(sink.Lanes) && sink.Works(&sink.Lanes[n])], sink.Name, strconv.Itoa(n))
		}
	}
}

// ofMembers collects one value of each member of each composite sink.
func ofMembers(value func(*MemberStatus) float64) func(*Status, emit) {
	return func(s *Status, emit emit) {
		for i := range s.Sinks {
			for j := range s.Sinks[i].Members {
				m := &s.Sinks[i].Members[j]
				emit(value(m), s.Sinks[i].Name, m.Name)
			}
		}
	}
}

// outcomeFamilies say what became of the events.
var outcomeFamilies = []Family{
	{
		Name: "events_processed_total", Type: Counter, Labels: []string{"sink", "status"}, Unit: "outcomes",
		Help: "Outcomes of deliveries: delivered, failed (one try, to be tried again), dead (given up) or discarded " +
			"(by no route, or by a sink that is tried once).",
		Investigate: "The share of failed grows: see delivery_errors_total for the class of the errors.",
		collect:     outcomes,
	},
	{
		Name: "discarded_total", Type: Counter, Labels: []string{"reason"}, Unit: "outcomes",
		Help: "Deliveries that were discarded, and will not be tried again: no_route (no route wants the event) or tried_once (the sink, which is tried " +
			"once, was away, slow, paused or did not accept it). They are in events_processed_total as well.",
		Investigate: "no_route grows, and events were meant to arrive: outbox-cdc route says where an event would go.",
		collect: func(s *Status, emit emit) {
			if len(s.Sinks) == 0 {
				return
			}
			var once int64
			for i := range s.Sinks {
				once += s.Sinks[i].Counts.Discarded
			}
			emit(float64(s.Unrouted), "no_route")
			emit(float64(once), "tried_once")
		},
	},
	{
		Name: "backlog_rows_left", Type: Gauge, Labels: []string{"sink"}, Unit: "rows",
		Help: "About how many rows of the outbox the sink's backlog job has still to compare with the ledger. They are counted when the job begins, or " +
			"estimated if that takes longer than 2 s. Absent without an unfinished job, without a session, and once the estimate has proved too low.",
		Investigate: "It does not fall, and the sink is well: outbox-cdc status says what the job waits for.",
		collect: ofBacklogs(func(b *BacklogStatus, emit func(float64)) {
			if b.Left != nil {
				emit(float64(*b.Left))
			}
		}),
	},
	{
		Name: "backlog_rate", Type: Gauge, Labels: []string{"sink"}, Unit: "rows/s",
		Help: "How many rows a second the sink's backlog job compares: over the last 3 s, or over the last chunk if that took longer. 0 while the sink is " +
			"away or paused. Absent without an unfinished job and without a session.",
		Investigate: "It is far below what the sink delivers a second: the rest of the time the job waits for the stream, or for the lanes.",
		collect: ofBacklogs(func(b *BacklogStatus, emit func(float64)) {
			if b.Rate != nil {
				emit(*b.Rate)
			}
		}),
	},
	{
		Name: "unaccounted_events", Type: Gauge, Unit: "events",
		Help: "Events of the outbox that are missing: they are owed to a sink, the stream is past them, and the ledger does not know what has become of them. " +
			"At most 10,000 are counted. Absent until all rows were compared once, in a process that stands by, and where source.columns.created_at has no index.",
		Investigate: "It is not 0: outbox-cdc verify names them, and docs/verify.md says what to do.",
		collect: func(s *Status, emit emit) {
			if s.Role == RoleLeader && s.Accounts != nil && s.Accounts.Missing != nil {
				emit(float64(*s.Accounts.Missing))
			}
		},
	},
	{
		Name: "verify_position_timestamp_seconds", Type: Gauge, Unit: "seconds since 1970",
		Help: "Events made before this time were compared with the ledger, for unaccounted_events. While nothing is left to compare, it follows the clock. " +
			"Absent in a process that stands by, and where source.columns.created_at has no index.",
		Investigate: "It is hours old: the component keeper:accounts of /readyz says why.",
		collect: func(s *Status, emit emit) {
			if s.Role == RoleLeader && s.Accounts != nil && !s.Accounts.UpTo.IsZero() {
				emit(float64(s.Accounts.UpTo.UnixMicro()) / 1e6)
			}
		},
	},
	{
		Name: "verify_last_success_timestamp_seconds", Type: Gauge, Unit: "seconds since 1970",
		Help: "When the comparison for unaccounted_events last did a step, or found nothing to compare. It moves at least every half minute, on an idle " +
			"outbox too. Absent in a process that stands by, and where source.columns.created_at has no index.",
		Investigate: "It stands still for minutes: the component keeper:accounts of /readyz says why.",
		collect: func(s *Status, emit emit) {
			if s.Role == RoleLeader && s.Accounts != nil && !s.Accounts.WorkedAt.IsZero() {
				emit(timestamp(s.Accounts.WorkedAt))
			}
		},
	},
}

// ofBacklogs collects values of each sink that has an unfinished job.
func ofBacklogs(send func(b *BacklogStatus, emit func(float64))) func(*Status, emit) {
	return func(s *Status, emit emit) {
		for i := range s.Sinks {
			if b := s.Sinks[i].Backlog; b != nil {
				send(b, func(value float64) { emit(value, s.Sinks[i].Name) })
			}
		}
	}
}

// outcomes sends all counters of each sink from the beginning: a rate over a counter that appears with its first event would miss that event.
func outcomes(s *Status, emit emit) {
	if len(s.Sinks) == 0 { // without a connector there is nothing to count
		return
	}
	emit(float64(s.Invalid), "none", "dead")
	emit(float64(s.Unrouted), "none", "discarded")
	for i := range s.Sinks {
		sink := &s.Sinks[i]
		emit(float64(sink.Counts.Delivered), sink.Name, "delivered")
		emit(float64(sink.Counts.Failed), sink.Name, "failed")
		emit(float64(sink.Counts.Dead), sink.Name, "dead")
		emit(float64(sink.Counts.Discarded), sink.Name, "discarded")
	}
}
