package connector

import (
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Retry is the schedule of tries after the first.
type Retry struct {
	Initial time.Duration // after the first try that failed; doubles with each further one
	Max     time.Duration
}

// delay is how long to wait after this many tries, 1 or more: exponential, with jitter of a half. The library's own
// state is not kept: the number of tries is what survives.
func (r Retry) delay(tries int) time.Duration {
	d := r.Initial
	for i := 1; i < tries && d < r.Max; i++ {
		d *= 2
	}
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(min(d, r.Max)), backoff.WithMaxInterval(r.Max), backoff.WithMaxElapsedTime(0),
		backoff.WithRandomizationFactor(0.5))
	return min(b.NextBackOff(), r.Max)
}
