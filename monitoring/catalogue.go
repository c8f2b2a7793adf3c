package monitoring

import (
	"slices"
	"time"
)

// Type is the type of a metric, as Prometheus names it.
type Type string

// The types of metrics.
const (
	Counter   Type = "counter"
	Gauge     Type = "gauge"
	Histogram Type = "histogram"
)

// Family is a metric with all of its series: a row of the table of metrics. Registration and docs/metrics.md are made from the table, and a
// test compares dashboard and alert rules with it.
type Family struct {
	// Name is without the prefix, which is configured.
	Name string
	Type Type
	// Labels are the names of its labels. Their values are configured names or a handful of words, never something from an event, so that
	// the configuration bounds the number of series.
	Labels []string
	// Unit is the unit of its values.
	Unit string
	// Help says what it is. Prometheus shows it too.
	Help string
	// Investigate says which values are worth a look, and what to look at then.
	Investigate string

	// collect sends the values of a status. It is nil for a metric that is measured event by event: see Metrics.
	collect func(*Status, emit)
	// buckets are the upper bounds of the classic buckets of a histogram.
	buckets []float64
}

// emit sends the value of one series. labels are the values of the family's labels, in their order.
type emit func(value float64, labels ...string)

// FamilyGroup is the metrics that answer one question.
type FamilyGroup struct {
	Question string
	Families []Family
}

// Catalogue returns the table of metrics, in the order in which a person asks.
func Catalogue() []FamilyGroup {
	return []FamilyGroup{
		{"Who is it?", identityFamilies},
		{"How far behind is it?", slices.Concat(streamFamilies, slotFamilies)},
		{"Which sink is it?", sinkFamilies},
		{"Why is it slow?", stageFamilies},
		{"Is everything there?", outcomeFamilies},
		{"How is the database?", databaseFamilies},
		{"Are the objectives kept?", objectiveFamilies},
	}
}

// families returns all rows of the table.
func families() (all []Family) {
	for _, g := range Catalogue() {
		all = append(all, g.Families...)
	}
	return all
}

// ofSinks collects one value of each sink.
func ofSinks(value func(*SinkStatus) float64) func(*Status, emit) {
	return func(s *Status, emit emit) {
		for i := range s.Sinks {
			emit(value(&s.Sinks[i]), s.Sinks[i].Name)
		}
	}
}

// ofRows collects one value of each sink whose rows are counted. There is none while nobody knows them: see SinkStatus.CountedAt. A standby that
// showed 0, or what it has known as the leader, would look as if nothing waited, or as if it waited twice.
func ofRows(value func(*SinkStatus) float64) func(*Status, emit) {
	return func(s *Status, emit emit) {
		for i := range s.Sinks {
			if sink := &s.Sinks[i]; !sink.CountedAt.IsZero() {
				emit(value(sink), sink.Name)
			}
		}
	}
}

// ofConnector collects one value of the whole connector.
func ofConnector(value func(*Status) float64) func(*Status, emit) {
	return func(s *Status, emit emit) { emit(value(s)) }
}

// ofSession collects one value of the running session. There is none without a session.
func ofSession(value func(*Status) float64) func(*Status, emit) {
	return func(s *Status, emit emit) {
		if s.Streaming {
			emit(value(s))
		}
	}
}

// timestamp returns a time in seconds since 1970.
func timestamp(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// asNumber is how a state is shown.
var asNumber = map[bool]float64{true: 1}
