package connector

import (
	"testing"
	"time"
)

// A wait doubles with each failed try, is changed by up to a half at random, and never exceeds the longest one.
func TestRetryDelay(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]Retry{
		"a message":          {Initial: time.Second, Max: 5 * time.Minute},
		"a session":          {Initial: 200 * time.Millisecond, Max: maxSessionWait},
		"shorter than first": {Initial: time.Minute, Max: time.Second},
	} {
		middle := r.Initial
		for tries := 1; tries < 30; tries++ {
			middle = min(middle, r.Max)
			for range 20 {
				if d := r.delay(tries); d < middle/2 || d > min(middle*3/2, r.Max) {
					t.Errorf("%s: %s after %d tries, want %s, give or take a half, and %s at most", name, d, tries, middle, r.Max)
				}
			}
			middle *= 2
		}
	}
}
