package composite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var _ sinks.Checker = (*Any)(nil)

// Check checks all members at the same time. One that can be used is enough: an error means that there is none. Each member also looks for
// its own topics. A topic of topics is there if one member has it.
//
// A member that is no Checker counts as one that can be used. Tell hears of each member whether it is away.
func (a *Any) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	found := make([][]sinks.TopicCheck, len(a.members))
	errs := make([]error, len(a.members))
	var checks sync.WaitGroup
	for i := range a.members {
		checks.Go(func() { found[i], errs[i] = a.members[i].check(ctx, topics) })
	}
	checks.Wait()
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return nil, context.Cause(ctx) // which says nothing of the members
	}
	var failed error
	usable := false
	for i, m := range a.members {
		if m.Tell != nil {
			m.Tell(Answer{Away: errs[i] != nil, Check: true})
		}
		switch {
		case errs[i] == nil:
			usable = true
		case failed == nil:
			failed = fmt.Errorf("%s: %w", m.Name, errs[i])
		default:
			failed = fmt.Errorf("%w; %s: %w", failed, m.Name, errs[i])
		}
	}
	if !usable {
		return nil, failed
	}
	var best []sinks.TopicCheck
	for i := range a.members {
		switch {
		case errs[i] != nil:
		case best == nil:
			best = found[i]
		default:
			for t := range best {
				if best[t].Err != nil {
					best[t] = found[i][t]
				}
			}
		}
	}
	return best, nil
}

// check checks one member. It returns the results for topics. The error says why the member cannot be used: it is away, or a topic of its own
// is.
func (m *Member) check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	c, ok := m.Sink.(sinks.Checker)
	if !ok {
		found := make([]sinks.TopicCheck, len(topics))
		for i, topic := range topics {
			found[i] = sinks.TopicCheck{Kind: "topic", Topic: topic}
		}
		return found, nil
	}
	found, err := c.Check(ctx, slices.Concat(topics, m.Topics))
	if err != nil {
		return nil, err
	}
	for _, own := range found[len(topics):] {
		if own.Err != nil {
			return nil, fmt.Errorf("%s %q: %w", own.Kind, own.Topic, own.Err)
		}
	}
	return found[:len(topics)], nil
}
