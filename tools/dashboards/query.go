package main

import (
	"fmt"
	"strings"
)

// query is one expression of a panel, and the name of its series.
type query struct {
	expr, legend string
}

// The labels by which every query chooses.
const (
	instances = `job="$job", instance=~"$instance"`
	sinks     = instances + `, sink=~"$sink"`
)

// ofInstances selects a metric of the chosen instances.
func ofInstances(metric string, matchers ...string) string {
	return prefix + metric + "{" + strings.Join(append([]string{instances}, matchers...), ", ") + "}"
}

// ofSinks selects a metric of the chosen sinks.
func ofSinks(metric string, matchers ...string) string {
	return prefix + metric + "{" + strings.Join(append([]string{sinks}, matchers...), ", ") + "}"
}

// ofProcess selects a metric of the Go runtime or of the process. Its name has no prefix.
func ofProcess(metric string) string { return metric + "{" + instances + "}" }

// leading is what the instance shows that streams, of a selection of gauges, by the labels given. A standby knows less, or knows what was
// true when it last streamed, and both together would count twice.
func leading(selection string, by ...string) string {
	return fmt.Sprintf("max%s(%s and on (job, instance) %s == 1)", grouped(by), selection, ofInstances("leader"))
}

// age is how long ago the moments were, at the last scrape, that a metric shows; 0 of a moment to come, by a clock that goes ahead. Since
// the scrape a metric that shows the present time would seem to get old. moments is the selection, or a condition of it.
func age(selection, moments string, by ...string) string {
	return "clamp_min(" + leading("timestamp("+selection+") - "+moments, by...) + ", 0)"
}

// perSecond is how fast counters rise, over all instances: those of a standby stand still.
func perSecond(counters string, by ...string) string {
	return fmt.Sprintf("sum%s(rate(%s[$__rate_interval]))", grouped(by), counters)
}

// grouped is how an aggregation keeps labels.
func grouped(by []string) string {
	if len(by) == 0 {
		return ""
	}
	return fmt.Sprintf(" by (%s) ", strings.Join(by, ", "))
}

// quantile is one of a histogram, from its classic buckets, or from the native histogram where Prometheus keeps only that. There is none
// while nothing happens.
func quantile(q float64, selection func(string, ...string) string, metric string, by ...string) string {
	return fmt.Sprintf("(histogram_quantile(%g, %s) or histogram_quantile(%g, %s)) >= 0",
		q, perSecond(selection(metric+"_bucket"), append([]string{"le"}, by...)...), q, perSecond(selection(metric), by...))
}

// share is a part of a whole, from 0 to 1, where there is a whole.
func share(part, whole string) string { return part + " / (" + whole + " > 0)" }

// waiting is how long the oldest event has waited for each sink.
var waiting = age(ofSinks("oldest_undelivered_timestamp_seconds"), ofSinks("oldest_undelivered_timestamp_seconds"), "sink")
