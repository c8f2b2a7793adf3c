package connector

import (
	"context"
	"errors"
	"fmt"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Check does the worst that the contract of sinks.Checker allows: it is wrong now and then, and does not return before its context ends. What
// it finds must change nothing of what becomes of events.
func (c *worldClient) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	if c.p.isKilled() {
		return nil, errWorldUnavailable
	}
	c.w.mu.Lock()
	c.checks++
	r, mode := c.w.random("check", c.n, c.checks), c.mode
	c.w.trace("sink%d is checked (%s)", c.n, modeNames[mode])
	c.w.mu.Unlock()
	if len(topics) > 0 {
		panic(fmt.Sprint("all topics of worlds come from events, and these are checked: ", topics))
	}
	if mode == modeSilent || r.chance(0.1) {
		select {
		case <-ctx.Done():
		case <-c.p.killed:
		}
	}
	if !c.p.slept(ctx, r.between(0, timeUnit)) {
		return nil, fmt.Errorf("%w: %w", errWorldUnavailable, context.Cause(ctx))
	}
	switch {
	case r.chance(0.2):
		return nil, errors.New("a check that is wrong")
	case mode == modeDown && r.chance(0.8):
		return nil, errWorldUnavailable
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.mine.allowed++ // an open breaker asks after it
	return nil, nil
}
