package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

func behindRow() row {
	kept := leading(ofInstances("slot_restart_lag_bytes"), "job")
	return row{"How far behind is it?", []cog.Builder[dashboard.Panel]{
		lines(panel{
			title: "Lag in bytes",
			shows: "WAL that the slot has not confirmed, and WAL that PostgreSQL keeps for it (restart), which also waits for old transactions to end.",
			good:  "both stay low, or fall. Peaks at large transactions are normal.",
			todo:  "if both grow for minutes, see below which sink or stage is slow. If only restart grows, a transaction is open for long.",
			page:  "slot.md#lag", unit: units.BytesIEC, width: 12,
		},
			query{leading(ofInstances("slot_lag_bytes"), "job"), "not confirmed"},
			query{kept, "kept (restart)"}),
		lines(panel{
			title: "Lag in seconds",
			shows: "Time since the commit of the last transaction that is settled; 0 when nothing is known to wait.",
			good:  "well below a second.",
			todo:  "if it grows as fast as the clock, nothing is settled: /readyz says what the connector waits for.",
			page:  "slot.md#lag", unit: units.Seconds, width: 12,
		}, query{leading(ofInstances("slot_lag_seconds"), "job"), "behind"}),
		lines(panel{
			title: "WAL kept, and how much may be kept",
			shows: "WAL that PostgreSQL keeps for the slot, and the limit at which it gives the slot up (max_slot_wal_keep_size; no line without one).",
			good:  "kept stays far below the limit.",
			todo:  "a slot that is lost loses events: mend what keeps the stream, or raise the limit and call pg_reload_conf().",
			page:  "operations.md#outboxslotlostsoon", unit: units.BytesIEC, width: 12,
		},
			query{kept, "kept"},
			query{kept + " + " + leading(ofInstances("slot_safe_wal_bytes"), "job"), "may be kept"}),
		number(panel{
			title: "Slot lost in",
			shows: "When the WAL that may be kept is used up, if what is kept goes on growing as over the last minute.",
			good:  "nothing is forecast.",
			todo:  "below 4 hours an alert pages. Mend what keeps the stream, or raise max_slot_wal_keep_size.",
			page:  "operations.md#outboxslotlostsoon", unit: units.Seconds, width: 6,
		}, query{leading(ofInstances("forecast_slot_lost_seconds")), "if it goes on so"}).
			Thresholds(absolute(thresholds("red", step{4 * 3600, "orange"}, step{24 * 3600, "green"}))).NoValue("not in sight"),
		number(panel{
			title: "Caught up in",
			shows: "When nothing waits any more, neither in the WAL nor parked, if it goes on as over the last minute; 0 if nothing waits.",
			good:  "0, or it falls.",
			todo:  "without a value, although all sinks are up, more comes than is delivered: the rows below say which stage is busy.",
			page:  "operations.md#outboxhighqueuedepth", unit: units.Seconds, width: 6,
		}, query{leading(ofInstances("forecast_caught_up_seconds")), "if it goes on so"}).
			Thresholds(absolute(thresholds("green", step{60, "orange"}, step{3600, "red"}))).NoValue("not at this rate"),
		lines(panel{
			title: "Backlog jobs: rows left",
			shows: "About how many rows of the outbox each sink's backlog job has still to compare with the ledger. No line without an unfinished job.",
			good:  "it falls to 0, and then there is no line.",
			todo:  "outbox-cdc status says what has filed the job, when it will be done, and what it waits for.",
			page:  "operations.md#outboxbacklogstuck", unit: units.Short, width: 12,
		}, query{leading(ofSinks("backlog_rows_left"), "sink"), "{{sink}}"}),
		lines(panel{
			title: "Backlog jobs: rows a second",
			shows: "How many rows of the outbox each sink's backlog job compares a second. What is missing of them is parked, and the lanes deliver it.",
			good:  "well above 0 until the job is done.",
			todo:  "0 while the sink is away or paused: mend or resume it. Slow if the sink is: the next rows wait until the lanes have found those before.",
			page:  "backlog.md", unit: units.Short, width: 12,
		}, query{leading(ofSinks("backlog_rate"), "sink"), "{{sink}}"}),
	}}
}
