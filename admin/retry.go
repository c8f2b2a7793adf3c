package admin

import (
	"context"
	"fmt"
	"slices"
)

// RetryNowOptions say which sinks are asked now.
type RetryNowOptions struct {
	// Sinks are their names. If there are none, all sinks of the connector are meant.
	Sinks []string
	// Progress is called with the number of rows done and of all rows. It may be nil.
	Progress func(done, total int)
}

// RetryNowResult says what RetryNow did.
type RetryNowResult struct {
	Sinks []RetriedSink `json:"sinks"`
	// Slot is the replication slot of the connector. Streaming says that a connector streams from it. If none does, the rows are
	// tried when one starts.
	Slot      string `json:"slot"`
	Streaming bool   `json:"streaming"`
}

// RetriedSink is what RetryNow did to one sink.
type RetriedSink struct {
	Sink string `json:"sink"`
	// MadeDue counts the parked events that waited for their next attempt, and are due now.
	MadeDue int `json:"made_due"`
	// Parked counts all parked events of the sink, before they were made due.
	Parked int `json:"parked"`
	// Paused says that the sink is paused: nothing is tried until it is resumed.
	Paused bool `json:"paused,omitempty"`
	// SinkNow is what has become of it within a few seconds.
	SinkNow
}

// RetryNow makes the connector ask sinks at once, also those whose breaker is open, and makes their parked events due that wait for
// their next attempt. No attempt is counted for that. Dead letters stay as they are: see ChangeParked.
//
// It then waits for up to three seconds to see what comes of it.
//
// The rows are changed 500 in a transaction. If a sink is not known, nothing is changed, and the error lists the sinks that are. An
// error in the middle leaves the rows that were changed before.
func RetryNow(ctx context.Context, c Config, o RetryNowOptions) (RetryNowResult, error) {
	result := RetryNowResult{Sinks: []RetriedSink{}, Slot: c.Source.Slot}
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		ids, err := l.processorIDs(o.Sinks)
		switch {
		case err != nil:
			return err
		case len(l.Sinks) == 0 || len(o.Sinks) > 0 && slices.Contains(ids, 0):
			return l.unknownSink(noSink)
		}
		ids = slices.DeleteFunc(ids, func(id int32) bool { return id == 0 })
		total, err := l.CountNotDue(ctx, ids)
		if err != nil {
			return err
		}
		before, err := l.readNow(ctx)
		if err != nil {
			return err
		}
		progress := dueProgress{total: total, show: o.Progress}
		progress.add(0)
		for _, id := range ids {
			s, err := l.retryNow(ctx, id, &progress)
			if err != nil {
				return fmt.Errorf("sink %q, after %s made due: %w", s.Sink, plural(progress.done, "event"), err)
			}
			result.Sinks = append(result.Sinks, s)
		}
		outcomes, streaming, err := l.watchOutcome(ctx, before, ids)
		if err != nil {
			return err
		}
		result.Streaming = streaming
		for i, id := range ids {
			result.Sinks[i].SinkNow = outcomes[id]
		}
		return nil
	})
	return result, err
}

func (l *ledgerConn) retryNow(ctx context.Context, id int32, progress *dueProgress) (RetriedSink, error) {
	s := RetriedSink{Sink: l.sinkName(id), Paused: l.isPaused(id)}
	var err error
	if s.Parked, err = l.CountStatus(ctx, []int32{id}, "parked"); err != nil { // before the connector is told, because it delivers them at once
		return s, err
	}
	err = l.MakeDue(ctx, id, func(rows int) {
		s.MadeDue += rows
		progress.add(rows)
	})
	s.Parked = max(s.Parked, s.MadeDue) // rows may have been parked since they were counted
	return s, err
}

// dueProgress counts the rows that were made due, over all sinks.
type dueProgress struct {
	done, total int
	show        func(done, total int)
}

func (p *dueProgress) add(rows int) {
	p.done += rows
	p.total = max(p.total, p.done) // rows may have been parked since they were counted
	if p.show != nil && p.total > 0 {
		p.show(p.done, p.total)
	}
}
