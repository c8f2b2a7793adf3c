package servers

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const startTimeout = time.Minute

// ready waits until a server that was started answers. When it ends instead, its log says why.
func ready(ctx context.Context, name string, i instance, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := ask(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-i.Done():
			return fmt.Errorf("%s ended at its start:\n%s", name, i.Log())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w; %w:\n%s", name, err, context.Cause(ctx), i.Log())
		}
	}
}

// joinRemove cleans up what could not be started.
func joinRemove(err error, i instance) error {
	return errors.Join(err, i.Remove())
}
