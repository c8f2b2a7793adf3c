package monitoring

// stageFamilies say where the time goes.
var stageFamilies = []Family{
	{
		Name: "event_processing_duration_seconds", Type: Histogram, Labels: []string{"sink"}, Unit: "seconds",
		Help:        "Time from the commit of an event to its acceptance by the sink.",
		Investigate: "Its 99th percentile is above what the services need: compare the busy shares of the stages.",
		buckets:     durationBuckets,
	},
	{
		Name: "stage_duration_seconds", Type: Histogram, Labels: []string{"stage"}, Unit: "seconds",
		Help: "How long a stage takes: decode (the reader's own work on what it hands to the lanes together), queue (from then until the " +
			"delivery begins, of the event of a batch that waits longest), deliver (a batch), record (a transaction of the recorder, with the " +
			"tries before it) and confirm (from its COMMIT until PostgreSQL is told).",
		Investigate: "One stage takes most of the time that event_processing_duration_seconds shows. Long queues come from the stages behind them.",
		buckets:     workBuckets,
	},
	{
		Name: "stage_busy_seconds_total", Type: Counter, Labels: []string{"stage", "sink"}, Unit: "seconds",
		Help: "How long a stage was at work, of each of its workers on average, so that its rate is between 0 and 1: decode and confirm (the " +
			"reader), queue (the lanes' own work, by sink), deliver (the lanes' calls of the sink, by sink) and record (the recorder). Waiting for " +
			"each other does not count.",
		Investigate: "Its rate is close to 1: this stage is the bottleneck. If all are far below it while the lag grows, PostgreSQL sends no faster.",
		collect: func(s *Status, emit emit) {
			for _, b := range s.Stages.Busy {
				emit(b.Busy.Seconds(), b.Stage, b.Sink)
			}
		},
	},
	{
		Name: "reader_wait_seconds_total", Type: Counter, Labels: []string{"for"}, Unit: "seconds",
		Help: "How long the reader has waited for others of the process: for lanes (their queues are full), for the window (too much is not " +
			"settled) or for the recorder.",
		Investigate: "Its rate is close to 1: what is behind the reader is the bottleneck, not the stream.",
		collect: func(s *Status, emit emit) {
			if len(s.Sinks) == 0 { // there is no connector
				return
			}
			emit(s.Stages.ReaderWaited.Lanes.Seconds(), "lanes")
			emit(s.Stages.ReaderWaited.Window.Seconds(), "window")
			emit(s.Stages.ReaderWaited.Recorder.Seconds(), "recorder")
		},
	},
	{
		Name: "deliver_duration_seconds", Type: Histogram, Labels: []string{"sink"}, Unit: "seconds",
		Help: "How long the sink takes for a batch, from its first request to its last answer.",
		Investigate: "It grows with the load, or is more than the usual time of a request to the destination: the destination or the network " +
			"is slow.",
		buckets: workBuckets,
	},
	{
		Name: "batch_events", Type: Histogram, Labels: []string{"sink"}, Unit: "events",
		Help:        "Messages of a batch. What waits while a batch is delivered makes the next batch.",
		Investigate: "Most batches have delivery.batch_size messages: the sink is the bottleneck. Larger batches, or more lanes, may help.",
		buckets:     []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000},
	},
	{
		Name: "delivery_errors_total", Type: Counter, Labels: []string{"sink", "class"}, Unit: "events",
		Help: "Messages that were tried and not accepted, by why: unavailable (the destination is away), topic_unavailable (it answers, and the " +
			"topic is away), refused (to be tried again), permanent (it can never be accepted) or throttled (the destination gets too much).",
		Investigate: "It grows: unavailable and topic_unavailable are for who runs the destination, refused and permanent for who writes or reads " +
			"the events. outbox-cdc dlq list shows the answers.",
		collect: func(s *Status, emit emit) {
			for i := range s.Sinks {
				for class, name := range errorClassNames {
					emit(float64(s.Sinks[i].Counts.Errors[class]), s.Sinks[i].Name, name)
				}
			}
		},
	},
	{
		Name: "retries_total", Type: Counter, Labels: []string{"sink"}, Unit: "tries",
		Help:        "Tries of messages that had been tried before.",
		Investigate: "It grows faster than events are delivered: most of the work is for messages that are not accepted.",
		collect:     ofSinks(func(s *SinkStatus) float64 { return float64(s.Counts.Retried) }),
	},
	{
		Name: "parked_total", Type: Counter, Labels: []string{"sink"}, Unit: "events",
		Help:        "Deliveries that were put into outbox_parked to wait there, tried or not. Dead letters are not among them.",
		Investigate: "It grows faster than unparked_total for minutes: the sink does not accept what it gets, or is slower than events come.",
		collect:     ofSinks(func(s *SinkStatus) float64 { return float64(s.Counts.Parked) }),
	},
	{
		Name: "unparked_total", Type: Counter, Labels: []string{"sink"}, Unit: "events",
		Help:        "Deliveries that the sink has accepted after they were parked.",
		Investigate: "It stands still while deliveries are parked and the sink accepts others: outbox-cdc dlq list shows what they wait for.",
		collect:     ofSinks(func(s *SinkStatus) float64 { return float64(s.Counts.Unparked) }),
	},
	{
		Name: "recorder_commit_seconds", Type: Histogram, Unit: "seconds",
		Help:        "How long the ledger's transactions take that record outcomes, of which each has many.",
		Investigate: "Its 99th percentile is above 0.1: a slow disk, a lock on the ledger's tables or a synchronous standby holds up the slot.",
		buckets:     workBuckets,
	},
	{
		Name: "recorder_retries_total", Type: Counter, Unit: "tries",
		Help:        "Tries to record outcomes again after such a transaction has failed.",
		Investigate: "It grows: PostgreSQL refuses to record, or is away. /readyz says why. Nothing is lost, but the slot stands still.",
		collect:     ofConnector(func(s *Status) float64 { return float64(s.Stages.RecorderRetries) }),
	},
}

// workBuckets are the classic buckets, in seconds, of what the connector does batch by batch.
var workBuckets = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}

// durationBuckets are the classic buckets in seconds: 1, 2 and 5 by decade around the two figures that are promised
// (p50 2 ms, p99 6 ms), up to what an outage of a minute makes.
var durationBuckets = []float64{
	.0005, .001, .002, .003, .004, .006, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 60,
}
