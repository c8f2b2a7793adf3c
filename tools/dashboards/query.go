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

// ofInstances selects a metric that has no sink.
func ofInstances(metric string, matchers ...string) string {
	return prefix + metric + "{" + strings.Join(append([]string{instances}, matchers...), ", ") + "}"
}

// ofSinks selects a metric of the chosen sinks.
func ofSinks(metric string, matchers ...string) string {
	return prefix + metric + "{" + strings.Join(append([]string{sinks}, matchers...), ", ") + "}"
}

// leading leaves of a selection of gauges what the instance shows that streams, by the labels given. A standby knows less, or knows what
// was true when it last streamed, and summing both would count twice.
func leading(selection string, by ...string) string {
	return fmt.Sprintf("max by (%s) (%s and on (job, instance) %s == 1)", strings.Join(by, ", "), selection, ofInstances("leader"))
}

// perSecond is how fast counters rise, over all instances: those of a standby stand still.
func perSecond(counters string, by ...string) string {
	return fmt.Sprintf("sum by (%s) (rate(%s[$__rate_interval]))", strings.Join(by, ", "), counters)
}

// quantile is one of a histogram, from its classic buckets, or from the native histogram where Prometheus keeps only that.
func quantile(q float64, metric string, selection func(string, ...string) string, by ...string) string {
	rate := func(series string, by ...string) string { return perSecond(series, by...) }
	return fmt.Sprintf("histogram_quantile(%g, %s) or histogram_quantile(%g, %s)",
		q, rate(selection(metric+"_bucket"), append([]string{"le"}, by...)...), q, rate(selection(metric), by...))
}
