package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

func healthRow() row {
	return row{"Is it healthy?", []cog.Builder[dashboard.Panel]{
		states(panel{
			title: "Who streams",
			shows: "Which instance streams from the slot, and which stand by.",
			good:  "exactly one leads at any time. With two instances or more a crash costs seconds, because another one takes over.",
			todo:  "if nobody leads, nothing is delivered. Look at /readyz of each instance: it says what the instance waits for.",
			page:  "operations.md", unit: units.Short, width: 8,
		}, meanings(meaning{"0", "stands by", "blue"}, meaning{"1", "leads", "green"}),
			query{ofInstances("leader"), "{{instance}}"}),
		lines(panel{
			title: "Outcomes",
			shows: "Events that left, by what became of them: delivered, failed (one try, to be tried again), dead or discarded.",
			good:  "nearly all are delivered, and the rate follows that of the services.",
			todo:  "failed tries have their cause in /readyz and in outbox-cdc status; dead letters wait for outbox-cdc dlq.",
			page:  "operations.md#dead-letters", unit: "cps", width: 16,
		}, query{perSecond(ofSinks("events_processed_total"), "sink", "status") + " > 0", "{{sink}} {{status}}"}),
	}}
}
