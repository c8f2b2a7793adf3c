package ledger_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// A percentile is at most 1/32 of its value away from the exact one, or a microsecond, also of results that were added.
func TestPercentile(t *testing.T) {
	t.Parallel()
	var none ledger.Results
	if p := none.Percentile(.99); p != 0 {
		t.Errorf("the percentile of nothing is %s", p)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() time.Duration{
		"microseconds":    func() time.Duration { return time.Duration(random.Int64N(40_000)) },
		"milliseconds":    func() time.Duration { return time.Duration(random.ExpFloat64() * 3e6) },
		"all magnitudes":  func() time.Duration { return time.Duration(math.Exp(random.Float64() * 34)) },
		"one value":       func() time.Duration { return 1500 * time.Millisecond },
		"an outage":       func() time.Duration { return time.Duration(random.Int64N(int64(10 * time.Hour))) },
		"longer than all": func() time.Duration { return math.MaxInt64 / 2 },
	} {
		for _, n := range []int{1, 2, 99, 10_000} {
			var all []time.Duration
			var sum ledger.Results
			for range n {
				d := draw()
				all = append(all, d)
				one := ledger.Results{Events: 1, Worst: d, Took: ledger.Durations{ledger.DurationBucket(d): 1}}
				sum.Add(&one)
			}
			slices.Sort(all)
			if sum.Events != int64(n) || sum.Worst != all[n-1] {
				t.Fatalf("%s: %d events, the worst %s, want %d and %s", name, sum.Events, sum.Worst, n, all[n-1])
			}
			for _, share := range []float64{.5, .99, 1} {
				exact := all[int(math.Ceil(share*float64(n)))-1]
				got := sum.Percentile(share)
				if off := (got - exact).Abs(); name != "longer than all" && off > max(exact/32, time.Microsecond) || got > all[n-1] {
					t.Errorf("%s: p%g of %d is %s, and exactly %s", name, 100*share, n, got, exact)
				}
			}
		}
	}
	for _, d := range []time.Duration{-1, 0, math.MaxInt64} {
		if b := ledger.DurationBucket(d); b < 0 || b >= ledger.DurationBuckets {
			t.Errorf("%s is in bucket %d of %d", d, b, ledger.DurationBuckets)
		}
	}
}
