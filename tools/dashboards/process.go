package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

func processRow() row {
	named := func(selection, what string) string {
		return `label_replace(` + selection + `, "what", "` + what + `", "", "")`
	}
	return row{"How is the process?", []cog.Builder[dashboard.Panel]{
		lines(panel{
			title: "CPU",
			shows: "Cores that each instance uses.",
			good:  "in proportion to the events; a standby and an idle outbox need next to nothing.",
			todo:  "at the limit of the container everything is late: give it more, or look for a sink that fails in a loop.",
			page:  "sizing.md", unit: units.NoUnit, width: 5,
		}, query{"rate(" + ofProcess("process_cpu_seconds_total") + "[$__rate_interval])", "{{instance}}"}),
		lines(panel{
			title: "Memory",
			shows: "Resident memory of each instance, and the limit that GOMEMLIMIT gives it, if it does.",
			good:  "level. delivery.max_in_flight_bytes bounds it, not the length of the backlog.",
			todo:  "close to the limit: lower max_in_flight_bytes, or give it more.",
			page:  "sizing.md", unit: units.BytesIEC, width: 5,
		}, query{named(ofProcess("process_resident_memory_bytes"), "used") + " or " + named(ofProcess("go_gc_gomemlimit_bytes")+" < 1e15", "limit"),
			"{{instance}} {{what}}"}),
		lines(panel{
			title: "Goroutines",
			shows: "Goroutines of each instance.",
			good:  "level from day to day: the sinks and lanes bound it. Slow webhooks need more.",
			todo:  "if it grows for hours, something leaks: please report it.",
			page:  "design.md", unit: units.Short, width: 4,
		}, query{ofProcess("go_goroutines"), "{{instance}}"}),
		lines(panel{
			title: "Pauses of the garbage collector",
			shows: "Which share of the time each instance stands still for the garbage collector.",
			good:  "far below 1 %.",
			todo:  "more: memory is short. Raise GOMEMLIMIT or the limit of the container.",
			page:  "sizing.md", unit: units.PercentUnit, width: 5,
		}, query{"rate(" + ofProcess("go_gc_duration_seconds_sum") + "[$__rate_interval])", "{{instance}}"}),
		lines(panel{
			title: "Connections for SQL",
			shows: "Connections of the instance that streams, by what PostgreSQL says of them, and how many it may have.",
			good:  "few are active at a time.",
			todo:  "if all are active for minutes, statements wait for each other: /readyz says what hangs.",
			page:  "slot.md#hangs", unit: units.Short, width: 5,
		},
			query{leading(ofInstances("pg_connections"), "state"), "{{state}}"},
			query{leading(ofInstances("pg_connections_limit"), "job"), "allowed"}),
	}}
}
