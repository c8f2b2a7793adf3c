package admin

import (
	"context"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// PurgeOptions say which dead letters PurgeDeadLetters deletes.
type PurgeOptions struct {
	// Sinks by name; "none" stands for what belongs to no sink. If there are none, it is every sink, and what belongs to none.
	Sinks []string
	// OlderThan is how long ago a dead letter must have died, by PostgreSQL's clock. It is more than 0.
	OlderThan time.Duration
	// DryRun finds and counts the dead letters, and deletes none.
	DryRun bool
	// Reason says who deletes them, and why. It is written into their rows of the log.
	Reason string
	// Confirm is called before anything is deleted, unless there is nothing to delete. If it returns an error, nothing is deleted.
	// It may be nil.
	Confirm func(PurgeResult) error
	// Progress is called with the number of dead letters done and of all. It may be nil.
	Progress func(done, total int)
}

// PurgeResult says what PurgeDeadLetters did.
type PurgeResult struct {
	DryRun bool `json:"dry_run,omitempty"`
	// Before is the time before which a dead letter must have died.
	Before time.Time `json:"before"`
	// Matched dead letters are old enough, and Younger ones are not.
	Matched int `json:"matched"`
	Younger int `json:"younger"`
	Deleted int `json:"deleted"`
	// Meanwhile counts those that somebody else has retried or discarded between the search and the deletion.
	Meanwhile int `json:"meanwhile,omitempty"`
	// Oldest is when the first of those that matched died.
	Oldest *time.Time `json:"oldest,omitempty"`
	// ByParkedAt counts those whose death the log does not have any more. They count as dead since they were parked.
	ByParkedAt int        `json:"by_parked_at,omitempty"`
	Sinks      []SinkRows `json:"sinks"`
}

// PurgeDeadLetters deletes dead letters that died long ago, payload included, as the action Discard does: each leaves a row in the log.
// If there are none, that is no error.
//
// When a dead letter died is in the log, and the newest death counts, so that a dead letter that was retried is as young as its last
// death. The log is kept for a while only. A dead letter whose death it has no more counts as dead since it was parked. That is
// too early if it was retried for long before it died, but it died before the oldest day that the log has.
func PurgeDeadLetters(ctx context.Context, c Config, o PurgeOptions) (PurgeResult, error) {
	result := PurgeResult{DryRun: o.DryRun, Sinks: []SinkRows{}}
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		keys, err := l.findOld(ctx, o, &result)
		if err != nil || o.DryRun || len(keys) == 0 {
			return err
		}
		if o.Confirm != nil {
			if err := o.Confirm(result); err != nil {
				return err
			}
		}
		var changed ChangeResult
		err = l.changeAll(ctx, Discard, ChangeOptions{Reason: o.Reason, Progress: o.Progress}, keys, &changed)
		result.Deleted, result.Meanwhile = changed.Changed, changed.Meanwhile
		return err
	})
	return result, err
}

// findOld returns the keys of the dead letters that are old enough.
func (l *ledgerConn) findOld(ctx context.Context, o PurgeOptions, result *PurgeResult) (keys []checkpoint.Key, err error) {
	processors, err := l.processorIDs(o.Sinks)
	if err != nil {
		return nil, err
	}
	if result.Before, err = l.timeBefore(ctx, o.OlderThan); err != nil {
		return nil, err
	}
	counts := map[int32]int{}
	var page []*ParkedRow
	take := func() error {
		old, err := l.diedBefore(ctx, page, result)
		for _, k := range old {
			counts[k.Processor]++
		}
		keys, page = append(keys, old...), page[:0]
		return err
	}
	// What was parked later has died later.
	q := parkedQuery{status: "dead", filter: Filter{Until: result.Before}, processors: processors}
	err = l.eachParkedRow(ctx, q, func(p *ParkedRow) (bool, error) {
		page = append(page, p)
		if len(page) < pageRows {
			return true, nil
		}
		return true, take()
	})
	if err == nil {
		err = take()
	}
	if err != nil {
		return nil, err
	}
	result.Matched, result.Sinks = len(keys), l.perSink(processors, counts)
	all, err := l.CountStatus(ctx, processors, "dead")
	result.Younger = max(all-len(keys), 0) // some may have gone since they were found
	return keys, err
}

// diedBefore returns the keys of those of the dead letters that died before result.Before.
func (l *ledgerConn) diedBefore(ctx context.Context, page []*ParkedRow, result *PurgeResult) ([]checkpoint.Key, error) {
	var ids []string
	for _, p := range page {
		if p.Event.ID != "" {
			ids = append(ids, p.Event.ID)
		}
	}
	deaths, err := l.ReadDeaths(ctx, ids)
	if err != nil {
		return nil, err
	}
	var keys []checkpoint.Key
	for _, p := range page {
		died, logged := deaths[p.key()]
		if !logged {
			died = p.ParkedAt
		}
		if !died.Before(result.Before) {
			continue
		}
		keys = append(keys, p.key())
		if result.Oldest == nil || died.Before(*result.Oldest) {
			result.Oldest = &died
		}
		// Without a sink it has died when it was parked, because nobody has tried it.
		if !logged && p.key().Processor != 0 {
			result.ByParkedAt++
		}
	}
	return keys, nil
}
