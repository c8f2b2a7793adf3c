package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

func healthRow() row {
	return row{"Is it healthy?", []cog.Builder[dashboard.Panel]{
		rows(panel{
			title: "Alerts that fire",
			shows: "The alerts of this outbox that fire now. Rules are needed for it: outbox-cdc monitoring alerts prints them.",
			good:  "none.",
			todo:  "the runbook has a section for each alert: what it means, what to look at, what to do.",
			page:  "operations.md", unit: units.Short, width: 8,
		}, "alertname",
			// Without rules nothing fires, and that does not mean that all is well.
			column{query: query{`max by (alertname, severity, sink) (ALERTS{alertname=~"Outbox.*", alertstate="firing", job=~"$job|"})` +
				` or label_replace(absent(job:outbox_instances:count{job="$job"}), "alertname", "Prometheus has no rules for this job", "", "")`,
				"severity"}, label: "severity"},
			column{query: query{legend: "sink"}, label: "sink"},
		).NoValue("no alert fires"),
		states(panel{
			title: "Who streams",
			shows: "Which instance streams from the slot, and which stand by.",
			good:  "exactly one leads at any time. With two instances or more a crash costs seconds, because another one takes over.",
			todo:  "if nobody leads, nothing is delivered: /readyz of each instance says what it waits for.",
			page:  "operations.md#outboxnoleader", unit: units.Short, width: 6,
		}, meanings(meaning{"0", "stands by", "blue"}, meaning{"1", "leads", "green"}),
			query{ofInstances("leader"), "{{instance}}"}),
		number(panel{
			title: "Instances and epoch",
			shows: "How many instances lead and stand by, and the epoch: each session of any instance has a higher one.",
			good:  "1 leads, at least 1 stands by, and the epoch stays for days.",
			todo:  "an epoch that rises all the time means sessions that end: the log says why each of them did.",
			page:  "log.md", unit: units.NoUnit, width: 4,
		},
			query{"sum(" + ofInstances("leader") + ")", "leading"},
			query{"sum(1 - " + ofInstances("leader") + ")", "standing by"},
			query{leading(ofInstances("epoch")), "epoch"}),
		number(panel{
			title: "Unaccounted",
			shows: "Events that are owed to a sink, that the stream is past, and of which the ledger does not know what has become of them.",
			good:  "0.",
			todo:  "outbox-cdc verify names them. Nothing deletes them. The page says how they are delivered after all.",
			page:  "operations.md#outboxunaccountedevents", unit: units.NoUnit, width: 3,
		}, query{leading(ofInstances("unaccounted_events")), "events"}).
			Thresholds(absolute(thresholds("green", step{1, "red"}))).NoValue("not known yet"),
		number(panel{
			title: "Compared up to",
			shows: "How old events are, at the least, that were compared with the ledger for the number of unaccounted ones. On an idle outbox it stays below a minute.",
			good:  "minutes, and in a large outbox hours, once a day, while all rows are compared.",
			todo:  "if it grows for days, the outbox is larger than what is compared in a day. /readyz says whether the comparison fails.",
			page:  "operations.md#outboxverifystuck", unit: units.Seconds, width: 3,
		}, query{age(ofInstances("verify_position_timestamp_seconds"), ofInstances("verify_position_timestamp_seconds")), "ago"}).
			Thresholds(absolute(thresholds("green", step{24 * 3600, "orange"}))).NoValue("not known yet"),

		rows(panel{
			title: "Objectives over 28 days",
			shows: "The share of the events of 28 days that each sink has accepted in time, and how much of the error budget is left.",
			good:  "the share is above its objective, and the budget falls more slowly than the days pass.",
			todo:  "outbox-cdc report names the worst hours and the slowest stage. A budget below 0 means that the objective is missed.",
			page:  "operations.md#outboxslaburnfast", unit: units.NoUnit, width: 8,
		}, "sink",
			column{query: query{leading(ofSinks("sla_within_seconds"), "sink"), "within"}, unit: units.Seconds},
			column{query: query{leading(ofSinks("sla_objective_ratio"), "sink"), "objective"}, unit: units.PercentUnit},
			column{query: query{leading(ofSinks("sla_compliance"), "sink") + " / 100", "in time"}, unit: units.PercentUnit},
			column{query: query{leading(ofSinks("sla_budget_left_ratio"), "sink"), "budget left"}, unit: units.PercentUnit,
				colors: thresholds("red", step{0, "orange"}, step{.25, "green"})},
		),
		lines(panel{
			title: "Events in and out a second",
			shows: "In: what is read from the stream. The others are what became of it, for each sink: delivered, failed (one try, to be tried again), dead (given up) or discarded.",
			good:  "nearly all are delivered, as fast as the services write.",
			todo:  "failed tries have their cause below, under Errors by class; dead letters wait for outbox-cdc dlq.",
			page:  "operations.md#outboxhigherrorrate", unit: units.CountsPerSecond, width: 8,
		}, query{perSecond(ofInstances("events_read_total"), "job"), "in"},
			query{perSecond(ofSinks("events_processed_total"), "sink", "status") + " > 0", "{{sink}} {{status}}"}),
		lines(panel{
			title: "Oldest undelivered",
			shows: "How long ago the oldest event was committed that was read and still waits for a sink, in a lane or parked.",
			good:  "less than a second, or it falls.",
			todo:  "a line that rises as fast as the clock is one event that does not get through. outbox-cdc dlq list shows what is parked, and why.",
			page:  "operations.md#outboxoldestparked", unit: units.Seconds, width: 8,
		}, query{waiting, "{{sink}}"}),
	}}
}
