package admin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/time/rate"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// Action is a change that a person makes to rows of outbox_parked.
type Action ledger.Action

// The actions, which ledger.Action describes.
const (
	Retry   = Action(ledger.Retry)
	Discard = Action(ledger.Discard)
	Kill    = Action(ledger.Kill)
)

// actionDetails holds, for each action, the status of the rows that it changes, and its past participle.
var actionDetails = map[Action]struct{ status, past string }{
	Retry:   {"dead", "retried"},
	Discard: {"dead", "discarded"},
	Kill:    {"parked", "killed"},
}

// Past returns the past participle: "retried".
func (a Action) Past() string { return actionDetails[a].past }

// rowNoun is what messages call a row with this status.
func rowNoun(status string) string {
	if status == "parked" {
		return "parked event"
	}
	return "dead letter"
}

// ChangeOptions say which rows to change, and how.
type ChangeOptions struct {
	Filter Filter
	// DryRun finds and counts the rows, and changes nothing.
	DryRun bool
	// Rate is the most rows to change in a second; 0 sets no limit.
	Rate int
	// Reason says who discards or kills the rows, and why. It is written into their rows of the log.
	Reason string
	// Confirm is called before anything is changed, with the number of rows in all and for each sink. If it returns an error,
	// nothing is changed. It may be nil.
	Confirm func(total int, sinks []SinkRows) error
	// Progress is called with the number of rows done and of all rows. It may be nil.
	Progress func(done, total int)
}

// SinkRows is the number of rows of one sink.
type SinkRows struct {
	Sink string `json:"sink"`
	Rows int    `json:"rows"`
	// Paused says that the sink is paused: rows that are retried then wait until it is resumed.
	Paused bool `json:"paused,omitempty"`
}

// ChangeResult says what ChangeParked did.
type ChangeResult struct {
	Action  Action `json:"action"`
	DryRun  bool   `json:"dry_run,omitempty"`
	Matched int    `json:"matched"`
	Changed int    `json:"changed"`
	// Meanwhile counts the rows that somebody else, perhaps the connector, changed between the search and the change. They were
	// left as they are.
	Meanwhile int `json:"meanwhile,omitempty"`
	// Left counts the dead letters of no sink that match. They cannot be retried.
	Left  int        `json:"left,omitempty"`
	Sinks []SinkRows `json:"sinks"`
}

// chunkRows is how many rows one transaction changes. It locks them until it ends, and a lane that wants to settle one
// of them has to wait.
const chunkRows = 500

// ChangeParked applies an action to the rows that the filter selects.
//
// It first finds all rows and then changes them, 500 in a transaction. Each transaction wakes the lanes of the sinks that it
// touched. If the filter selects nothing, or names an id whose row the action cannot be applied to, that is an error, and
// nothing is changed. An error in the middle leaves the chunks that were changed before; the result says how many rows these
// are.
func ChangeParked(ctx context.Context, c Config, a Action, o ChangeOptions) (ChangeResult, error) {
	result := ChangeResult{Action: a, DryRun: o.DryRun, Sinks: []SinkRows{}}
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		keys, err := l.findRows(ctx, a, o.Filter, &result)
		if err != nil {
			return err
		}
		if o.Confirm != nil && !o.DryRun {
			if err := o.Confirm(len(keys), result.Sinks); err != nil {
				return err
			}
		}
		if o.DryRun {
			return nil
		}
		return l.changeAll(ctx, a, o, keys, &result)
	})
	return result, err
}

// findRows returns the keys of the rows to change, 24 bytes each. They are all found before the first is changed, so that
// exactly what a person has confirmed is changed, even if other messages die meanwhile.
func (l *ledgerConn) findRows(ctx context.Context, a Action, f Filter, result *ChangeResult) ([]checkpoint.Key, error) {
	processors, err := l.processorIDs(f.Sinks)
	if err != nil {
		return nil, err
	}
	var keys []checkpoint.Key
	counts := map[int32]int{}
	seen := map[string]bool{}
	err = l.eachParkedRow(ctx, parkedQuery{status: actionDetails[a].status, filter: f, processors: processors}, func(p *ParkedRow) (bool, error) {
		seen[p.Event.ID] = true
		if a == Retry && p.key().Processor == 0 {
			result.Left++
			return true, nil
		}
		keys = append(keys, p.key())
		counts[p.key().Processor]++
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range f.IDs {
		if !seen[l.canonicalID(id)] {
			return nil, nothingChanged(l.wrongStatus(ctx, actionDetails[a].status, a.Past(), id, processors))
		}
	}
	if result.Left > 0 && (len(keys) == 0 || len(f.IDs) > 0) {
		return nil, fmt.Errorf("%s of no sink cannot be retried: no valid event could be made of the row; mend what wrote it, insert it anew, and discard this",
			plural(result.Left, "dead letter"))
	}
	if len(keys) == 0 {
		return nil, nothingChanged(l.noMatch(ctx, actionDetails[a].status, f))
	}
	result.Matched, result.Sinks = len(keys), l.perSink(processors, counts)
	return keys, nil
}

// perSink returns the numbers of rows of those processors that have some.
func (l *ledgerConn) perSink(processors []int32, counts map[int32]int) []SinkRows {
	sinks := []SinkRows{}
	for _, id := range processors {
		if n := counts[id]; n > 0 {
			sinks = append(sinks, SinkRows{Sink: l.sinkName(id), Rows: n, Paused: l.isPaused(id)})
		}
	}
	return sinks
}

// noMatch returns the error for a filter that selects no row. It says how many rows with this status there are at all.
func (l *ledgerConn) noMatch(ctx context.Context, status string, f Filter) error {
	all, err := l.processorIDs(nil)
	if err != nil {
		return err
	}
	n, err := l.CountStatus(ctx, all, status)
	switch {
	case err != nil:
		return err
	case n == 0:
		return fmt.Errorf("there is no %s", rowNoun(status))
	}
	return fmt.Errorf("no %s matches (%s), of %d", rowNoun(status), f, n)
}

// nothingChanged adds to an error that came before the first change that nothing was changed.
func nothingChanged(err error) error { return fmt.Errorf("%w; nothing was changed", err) }

// wrongStatus returns the error for an event that was named by its id, but has no row with the wanted status. It says what the
// event is instead, at each of the processors.
func (l *ledgerConn) wrongStatus(ctx context.Context, wanted, done, id string, processors []int32) error {
	all, err := l.ReadStatus(ctx, id, processors)
	if err != nil {
		return err
	}
	var states []string
	for _, s := range all {
		state := s.Status
		if state == wanted {
			state += ", and the other filters leave it out,"
		}
		if s.Processor != 0 {
			state += " at " + l.sinkName(s.Processor)
		}
		states = append(states, state)
	}
	if states == nil {
		return fmt.Errorf("event %s cannot be %s: the ledger has nothing of it, at these sinks", id, done)
	}
	slices.Sort(states)
	return fmt.Errorf("event %s cannot be %s: it is no %s, but %s", id, done, rowNoun(wanted), strings.Join(states, ", "))
}

// changeAll changes the rows chunk by chunk, not faster than o.Rate.
func (l *ledgerConn) changeAll(ctx context.Context, a Action, o ChangeOptions, keys []checkpoint.Key, result *ChangeResult) error {
	chunk := chunkRows
	limit := rate.NewLimiter(rate.Inf, chunk)
	if o.Rate > 0 {
		// Four chunks a second, so that the rows come to the lanes evenly, and not in one burst a second.
		chunk = min(chunkRows, max(1, o.Rate/4))
		limit = rate.NewLimiter(rate.Limit(o.Rate), chunk)
	}
	change := ledger.Change{Action: ledger.Action(a), Reason: o.Reason, Slot: l.cfg.Source.Slot, DeadBlocks: l.cfg.DeadBlocks}
	report := func(done int) {
		if o.Progress != nil {
			o.Progress(done, len(keys))
		}
	}
	report(0)
	done := 0
	for part := range slices.Chunk(keys, chunk) {
		err := limit.WaitN(ctx, len(part))
		n := 0
		if err == nil {
			n, err = l.Change(ctx, change, part)
		}
		if err != nil {
			return fmt.Errorf("%d of %d %s, then: %w", result.Changed, len(keys), a.Past(), cmp.Or(context.Cause(ctx), err))
		}
		done += len(part)
		result.Changed += n
		result.Meanwhile += len(part) - n
		report(done)
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
