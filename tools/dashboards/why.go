package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

// sinkStates are the states of a sink, from good to bad.
var sinkStates = []state{
	{"ok", "green"}, {"catching_up", "blue"}, {"degraded", "yellow"}, {"away", "red"}, {"suspect", "purple"}, {"paused", "text"},
}

func whyRow() row {
	stateOf, stateMeanings := numbered(ofSinks, "sink_state", "state", sinkStates)
	const batch = "batch_events"
	return row{"Why?", []cog.Builder[dashboard.Panel]{
		logarithmic(lines(panel{
			title: "Stages: time (p99)",
			shows: "How long each stage takes: decode, queue (waiting for its lane), deliver (a batch), record (a transaction), confirm.",
			good:  "queue and record take milliseconds; deliver takes what the destination takes.",
			todo:  "the stage with the longest time is the one to look at. A long queue comes from the stages behind it.",
			page:  "metrics.md", unit: units.Seconds, width: 8,
		}, query{quantile(.99, ofInstances, "stage_duration_seconds", "stage"), "{{stage}}"})),
		lines(panel{
			title: "Stages: busy share",
			shows: "Which share of the time each stage is at work, and the reader waits for what is behind it. deliver and queue are those of the busiest sink.",
			good:  "all far below 100 %.",
			todo:  "the stage near 100 % is the bottleneck. If none is, while the lag grows, PostgreSQL does not send faster.",
			page:  "sizing.md", unit: units.PercentUnit, width: 8,
		},
			query{"max by (stage) (rate(" + ofInstances("stage_busy_seconds_total") + "[$__rate_interval]))", "{{stage}}"},
			query{"max by (for) (rate(" + ofInstances("reader_wait_seconds_total") + "[$__rate_interval]))", "reader waits for {{for}}"}).
			Max(1),
		logarithmic(lines(panel{
			title: "Deliver: time of a batch (p99)",
			shows: "How long each sink takes for a batch, from its first request to its last answer.",
			good:  "what the destination usually takes, and the same at any load.",
			todo:  "if it grows with the load, the destination or the network is slow. More lanes help if it is only far away.",
			page:  "sizing.md", unit: units.Seconds, width: 8,
		}, query{quantile(.99, ofSinks, "deliver_duration_seconds", "sink"), "{{sink}}"})),
		states(panel{
			title: "State of each sink",
			shows: "ok, catching up (delivers what was parked), degraded (it fails), away (left alone), suspect (it refuses everything), paused (by a person).",
			good:  "ok, and catching up for a while after an outage.",
			todo:  "outbox-cdc status says why, since when, and what to do.",
			page:  "operations.md#outboxsinksuspect", unit: units.NoUnit, width: 8,
		}, stateMeanings, query{leading(stateOf, "sink"), "{{sink}}"}),
		states(panel{
			title: "Circuit breakers",
			shows: "Whether each sink is left alone: open after several batches in a row found it away; half open while one event asks whether it is back.",
			good:  "closed.",
			todo:  "open for minutes: the destination is away. Open and closed in turn: it flaps. outbox-cdc retry asks at once.",
			page:  "operations.md#outboxbreakerflapping", unit: units.NoUnit, width: 8,
		}, meanings(meaning{"0", "closed", "green"}, meaning{"1", "half open", "yellow"}, meaning{"2", "open", "red"}),
			query{leading(ofSinks("circuit_breaker_state"), "sink"), "{{sink}}"}),
		lines(panel{
			title: "Held aggregates",
			shows: "Aggregates whose events wait behind one that failed, so that their order is kept.",
			good:  "0.",
			todo:  "if it grows while the sink accepts other messages, it refuses some messages of many aggregates: outbox-cdc dlq list.",
			page:  "operations.md#outboxheldaggregates", unit: units.Short, width: 4,
		}, query{leading(ofSinks("held_aggregates"), "sink"), "{{sink}}"}),
		lines(panel{
			title: "Batch sizes",
			shows: "Messages of a batch, on average. What waits while a batch is delivered makes the next batch.",
			good:  "small: the sink is faster than events come.",
			todo:  "at delivery.batch_size all the time, the sink is the bottleneck: larger batches or more lanes may help.",
			page:  "sizing.md", unit: units.Short, width: 4,
		}, query{share(perSecond(ofSinks(batch+"_sum"), "sink"), perSecond(ofSinks(batch+"_count"), "sink")), "{{sink}}"}),
	}}
}
