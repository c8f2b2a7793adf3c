package monitoring

// stageFamilies say where the time goes.
var stageFamilies = []Family{
	{
		Name: "event_processing_duration_seconds", Type: Histogram, Labels: []string{"sink"}, Unit: "seconds",
		Help:        "Time from the commit of an event to its acceptance by the sink.",
		Investigate: "Its 99th percentile is above what the services need: compare the busy shares of the stages.",
		buckets:     durationBuckets,
	},
}

// durationBuckets are the classic buckets in seconds: 1, 2 and 5 by decade around the two figures that are promised
// (p50 2 ms, p99 6 ms), up to what an outage of a minute makes.
var durationBuckets = []float64{
	.0005, .001, .002, .003, .004, .006, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 60,
}
