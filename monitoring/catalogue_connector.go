package monitoring

import "github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"

// identityFamilies say which process it is, and what it does.
var identityFamilies = []Family{
	{
		Name: "build_info", Type: Gauge, Labels: []string{"version", "go_version", "commit", "commit_date"}, Unit: "1",
		Help:        "1; the labels say which build of outbox-cdc this is. An empty commit or date of it is not known.",
		Investigate: "Instances of one job have different versions for longer than a rollout takes.",
		collect: func(_ *Status, emit emit) {
			v := buildinfo.Read()
			emit(1, v.Version, v.Go, v.Commit, v.Time)
		},
	},
	{
		Name: "leader", Type: Gauge, Unit: "0 or 1",
		Help:        "1 while this process streams from the slot, 0 while it stands by.",
		Investigate: "The sum over all instances is 0 for more than a minute: nobody delivers. Look at /readyz of each instance.",
		collect:     ofConnector(func(s *Status) float64 { return asNumber[s.Streaming] }),
	},
	{
		Name: "sessions_total", Type: Counter, Unit: "sessions",
		Help:        "Replication sessions begun since the process began.",
		Investigate: "More than a few an hour: a connection flaps. The log says why each session ended.",
		collect:     ofConnector(func(s *Status) float64 { return float64(s.Sessions) }),
	},
	{
		Name: "epoch", Type: Gauge, Unit: "sessions",
		Help:        "The number that the running session has in the checkpoint: each session of any instance has a higher one. Absent without a session.",
		Investigate: "It rises on more than one instance: they take the slot from each other.",
		collect:     ofSession(func(s *Status) float64 { return float64(s.Epoch) }),
	},
	{
		Name: "session_start_timestamp_seconds", Type: Gauge, Unit: "seconds since 1970",
		Help:        "When the running session began to stream. Absent without a session.",
		Investigate: "It moves although nobody has restarted anything: the log says why the session before ended.",
		collect:     ofSession(func(s *Status) float64 { return timestamp(s.Since) }),
	},
}

// streamFamilies say how far the connector is behind the database.
var streamFamilies = []Family{
	{
		Name: "slot_lag_bytes", Type: Gauge, Unit: "bytes",
		Help:        "Bytes of WAL that the replication slot has not confirmed.",
		Investigate: "It grows for minutes: the stream, the recorder or a sink that keeps everything in order is slower than the services write.",
		collect:     ofConnector(func(s *Status) float64 { return float64(s.LagBytes) }),
	},
	{
		Name: "slot_lag_seconds", Type: Gauge, Unit: "seconds",
		Help:        "Time since the commit of the last transaction that is settled; 0 while nothing is known to wait.",
		Investigate: "It grows as fast as the clock: nothing is settled. Look at /readyz, then at the busy share of the stages.",
		collect:     ofConnector(func(s *Status) float64 { return s.Lag.Seconds() }),
	},
	{
		Name: "settled_timestamp_seconds", Type: Gauge, Unit: "seconds since 1970",
		Help: "Everything that is known to be committed before this time is settled: delivered, parked, dead or discarded. It is the present time " +
			"while nothing is known to wait. Absent in a process that stands by or has not streamed.",
		Investigate: "It stands still: nothing is settled. time() minus it is the lag, also where the scrapes are old.",
		collect: func(s *Status, emit emit) {
			if s.Role == RoleLeader {
				emit(timestamp(s.At.Add(-s.Lag)))
			}
		},
	},
	{
		Name: "events_read_total", Type: Counter, Unit: "events",
		Help:        "Rows of the outbox that came on the stream, each once whatever number of sinks it goes to. What PostgreSQL sends again after a restart counts again.",
		Investigate: "Its rate is 0 although services write: look at slot_lag_bytes. It is higher than what is delivered to each sink: see parked_total.",
		collect:     ofConnector(func(s *Status) float64 { return float64(s.Stages.Read) }),
	},
	{
		Name: "publication_changes_total", Type: Counter, Unit: "changes",
		Help: "How often the publication was found changed, and right again. Rows that were written in between may be missing in the stream. " +
			"One that is found wrong ends the process.",
		Investigate: "It has risen: look for rows of the outbox that the ledger does not know.",
		collect:     ofConnector(func(s *Status) float64 { return float64(s.Mended.Publications) }),
	},
	{
		Name: "slot_resyncs_total", Type: Counter, Unit: "resyncs",
		Help: "How often this process has made a lost slot anew, with jobs that deliver what is missing (source.on_slot_loss: resync). What a person does " +
			"with outbox-cdc resync is not counted: outbox-cdc backlog shows what has filed each job.",
		Investigate: "It has risen: the slot was lost. Find out why it kept more WAL than it may, see docs/slot.md.",
		collect:     ofConnector(func(s *Status) float64 { return float64(s.Mended.Slots) }),
	},
	{
		Name: "events_in_queue", Type: Gauge, Labels: []string{"status"}, Unit: "events",
		Help: "Events by status: pending (read from the WAL and not settled), parked (deliveries that wait in outbox_parked) and dead (dead letters " +
			"of sinks). What was not read yet is in slot_lag_bytes. Absent in a process that stands by; parked and dead also before they are counted.",
		Investigate: "pending stands at delivery.max_in_flight for minutes: a stage behind the reader is the bottleneck. parked grows: see parked_events.",
		collect:     queue,
	},
}

// queue sends how many events wait.
func queue(s *Status, emit emit) {
	if s.Role != RoleLeader {
		return
	}
	emit(float64(s.InFlight), "pending")
	var parked, dead int64
	for i := range s.Sinks {
		if s.Sinks[i].CountedAt.IsZero() {
			return
		}
		parked += s.Sinks[i].Parked
		dead += s.Sinks[i].DeadLetters
	}
	emit(float64(parked), "parked")
	emit(float64(dead), "dead")
}
