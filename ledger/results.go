package ledger

import (
	"maps"
	"math"
	"math/bits"
	"slices"
	"time"
)

// Results count what became of a sink's events in some time, for its objective. They are those of outbox_metrics.
type Results struct {
	// Events counts what the sink has accepted, what has become a dead letter, and what was discarded because the sink did not accept it.
	// InTime counts those of them that were accepted within the objective's time.
	Events int64
	InTime int64
	// Took has the times from commit to acceptance of what was accepted, and Worst is the longest of them.
	Took  Durations
	Worst time.Duration
}

// Add adds other results to r.
func (r *Results) Add(o *Results) {
	r.Events += o.Events
	r.InTime += o.InTime
	r.Worst = max(r.Worst, o.Worst)
	if r.Took == nil && len(o.Took) > 0 {
		r.Took = Durations{}
	}
	for bucket, n := range o.Took {
		r.Took[bucket] += n
	}
}

// Percentile returns the duration within which this share of the events was accepted, and 0 if none was. It is wrong by at most 1/32 of its
// value, or by a microsecond: see Durations.
func (r *Results) Percentile(share float64) time.Duration {
	return min(r.Took.percentile(share), r.Worst)
}

// Durations counts durations by bucket, so that percentiles can be told of any number of them. Each power of two of microseconds has 16
// buckets of one width. A bucket is told as its middle, which is at most 1/32 away from what is in it, or a microsecond. The buckets are always
// the same, so that the durations of minutes, sessions and sinks can be added.
type Durations map[int]int64

const (
	bucketBits      = 4         // 16 buckets for each power of two
	longestDuration = 1<<42 - 1 // microseconds, some 50 days; what takes longer counts as this
	// DurationBuckets is how many buckets there are.
	DurationBuckets = (42 - bucketBits + 1) << bucketBits
)

// DurationBucket returns the bucket of a duration, from 0 to DurationBuckets-1. Below 32 µs each microsecond is one.
func DurationBucket(d time.Duration) int {
	us := uint64(min(max(d, 0)/time.Microsecond, longestDuration))
	shift := max(0, bits.Len64(us)-bucketBits-1)
	return shift<<bucketBits + int(us>>shift)
}

// middle returns the middle of a bucket.
func middle(bucket int) time.Duration {
	shift := max(0, bucket>>bucketBits-1)
	lowest := (bucket - shift<<bucketBits) << shift
	return time.Duration(lowest)*time.Microsecond + time.Duration(1<<shift)*time.Microsecond/2
}

func (d Durations) percentile(share float64) time.Duration {
	var all int64
	for _, n := range d {
		all += n
	}
	if all == 0 {
		return 0
	}
	rank := max(1, int64(math.Ceil(share*float64(all))))
	for _, bucket := range slices.Sorted(maps.Keys(d)) {
		if rank -= d[bucket]; rank <= 0 {
			return middle(bucket)
		}
	}
	return 0
}
