package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

func sinksRow() row {
	const duration = "event_processing_duration_seconds"
	delivered := perSecond(ofSinks("events_processed_total", `status="delivered"`), "sink")
	return row{"Which sink is it?", []cog.Builder[dashboard.Panel]{
		rows(panel{
			title: "Sinks",
			shows: "Each sink now: its state, what waits for it, how long a delivery takes from the commit, which share of the tries it accepts.",
			good:  "state ok, nothing parked or dead, nearly 100 % accepted.",
			todo:  "for a sink that is not ok, outbox-cdc status has the cause and what to do; outbox-cdc retry asks it at once.",
			page:  "operations.md#outboxsinkaway", unit: units.NoUnit, width: 24,
		}, "sink",
			column{query: query{leading(ofSinks("sink_state"), "sink", "state") + " == 1", "state"}, label: "state"},
			column{query: query{leading(ofSinks("parked_events"), "sink"), "parked"}, unit: units.Short, colors: thresholds("text", step{1, "orange"})},
			column{query: query{waiting, "oldest waits"}, unit: units.Seconds,
				colors: thresholds("text", step{60, "orange"}, step{3600, "red"})},
			column{query: query{leading(ofSinks("dead_letters"), "sink"), "dead"}, unit: units.Short, colors: thresholds("text", step{1, "red"})},
			column{query: query{leading(ofSinks("in_flight"), "sink"), "in flight"}, unit: units.Short},
			column{query: query{delivered, "delivered"}, unit: units.CountsPerSecond},
			column{query: query{quantile(.99, ofSinks, duration, "sink"), "p99 from commit"}, unit: units.Seconds},
			column{query: query{share(delivered, perSecond(ofSinks("events_processed_total", `status=~"delivered|failed|dead"`), "sink")), "accepted"},
				unit: units.PercentUnit, colors: thresholds("red", step{.95, "orange"}, step{.999, "green"})},
		).Height(6),
		durations(panel{
			title: "Latency of the chosen sinks",
			shows: "How many events took how long from their commit to their acceptance. Choose one sink above to see it alone.",
			good:  "one narrow band, far below the objective.",
			todo:  "a second band far above is what was parked. If the band rises, the row below says which stage takes the time.",
			page:  "metrics.md", unit: units.Seconds, width: 12,
		}, "sum by (le) (rate("+ofSinks(duration+"_bucket")+"[$__rate_interval])) or on () sum(rate("+ofSinks(duration)+"[$__rate_interval]))"),
		logarithmic(lines(panel{
			title: "Latency by sink",
			shows: "Time from the commit of an event to its acceptance by the sink: half of the events take less than p50, 99 of 100 less than p99.",
			good:  "p99 is below the objective of the sink.",
			todo:  "compare with the time that the sink takes for a batch, in the row below: the rest is spent waiting in front of it.",
			page:  "metrics.md", unit: units.Seconds, width: 12,
		},
			query{quantile(.5, ofSinks, duration, "sink"), "{{sink}} p50"},
			query{quantile(.99, ofSinks, duration, "sink"), "{{sink}} p99"})),
		lines(panel{
			title: "Errors by class",
			shows: "Messages that were tried and not accepted, by why: unavailable, topic_unavailable, refused, permanent or throttled.",
			good:  "none.",
			todo:  "unavailable and topic_unavailable are for who runs the destination, refused and permanent for who writes the events.",
			page:  "operations.md#outboxhigherrorrate", unit: units.CountsPerSecond, width: 12,
		}, query{perSecond(ofSinks("delivery_errors_total"), "sink", "class") + " > 0", "{{sink}} {{class}}"}),
		lines(panel{
			title: "Parked and dead",
			shows: "Deliveries that wait in outbox_parked, and dead letters, which wait for a person.",
			good:  "0. After an outage parked falls to 0 by itself.",
			todo:  "parked that grows: the sink is away or refuses. Dead letters: outbox-cdc dlq list, then dlq retry or dlq discard.",
			page:  "operations.md#outboxdeadletters", unit: units.Short, width: 12,
		},
			query{leading(ofSinks("parked_events"), "sink"), "{{sink}} parked"},
			query{leading(ofSinks("dead_letters"), "sink"), "{{sink}} dead"}),
	}}
}
