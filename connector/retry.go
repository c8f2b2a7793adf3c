package connector

import (
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Retry says how long to wait before each try after the first.
type Retry struct {
	Initial time.Duration // after the first failed try; it doubles with each further one
	Max     time.Duration // the longest wait
}

// delay returns how long to wait after this many failed tries, 1 or more. It doubles with each try, and is changed by up to a
// half at random. We make a new backoff object for each call, because only the number of tries is kept.
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
