package monitoring

import "github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"

// identityFamilies say which process it is, and what it does.
var identityFamilies = []Family{
	{
		Name: "build_info", Type: Gauge, Labels: []string{"version", "go_version", "commit"}, Unit: "1",
		Help:        "1; the labels say which build of outbox-cdc this is. An empty commit is not known.",
		Investigate: "Instances of one job have different versions for longer than a rollout takes.",
		collect: func(_ *Status, emit emit) {
			v := buildinfo.Read()
			emit(1, v.Version, v.Go, v.Commit)
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
		Help:        "Replication sessions begun.",
		Investigate: "More than a few an hour: a connection flaps. The log says why each session ended.",
		collect:     ofConnector(func(s *Status) float64 { return float64(s.Sessions) }),
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
		Help:        "Age of the last transaction settled; 0 when nothing is known to wait.",
		Investigate: "It grows as fast as the clock: nothing is settled. Look at /readyz, then at the busy share of the stages.",
		collect:     ofConnector(func(s *Status) float64 { return s.Lag.Seconds() }),
	},
	{
		Name: "in_flight", Type: Gauge, Unit: "events",
		Help:        "Events read from the WAL and not yet settled.",
		Investigate: "It stands at its highest for minutes: a stage behind the reader is the bottleneck.",
		collect:     ofConnector(func(s *Status) float64 { return float64(s.InFlight) }),
	},
}
