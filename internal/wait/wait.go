// Package wait waits, unless a context ends before.
package wait

import (
	"context"
	"time"
)

// For waits for d. If ctx ends before, it returns the cause of that. It makes no timer for a d of 0 or less.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
