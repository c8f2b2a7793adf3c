package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// WaitsFor says what a parked row waits for. If several things keep it, it is the one that matters most: see ledgerConn.waits.
type WaitsFor string

// What a row may wait for.
const (
	WaitsForEvent       WaitsFor = "event"       // an earlier event of its aggregate: ParkedRow.Behind
	WaitsForPerson      WaitsFor = "person"      // who retries or discards this dead letter, which holds its aggregate
	WaitsForResume      WaitsFor = "resume"      // the sink is paused
	WaitsForConnector   WaitsFor = "connector"   // none streams
	WaitsForDestination WaitsFor = "destination" // it is away
	WaitsForAttempt     WaitsFor = "attempt"     // the time of its next attempt
	WaitsForRate        WaitsFor = "rate"        // the sink is suspect, so that due rows are tried at a limited rate
	WaitsForTurn        WaitsFor = "turn"        // it is due, or was never tried, and others come first
)

// sinksNow is what is known of the sinks at one moment.
type sinksNow struct {
	streaming bool                       // a connector streams from the slot
	states    map[int32]ledger.SinkState // by processor, as that connector has written them; a sink without one is well
}

// readNow reads what is known of the sinks now. If no connector streams, nothing is known.
func (l *ledgerConn) readNow(ctx context.Context) (now sinksNow, err error) {
	// In this order: a connector that begins to stream in between has raised the epoch, or has not written a state yet.
	if now.streaming, err = provision.IsStreamed(ctx, l.conn, l.cfg.Source.Slot); err != nil || !now.streaming {
		return now, err
	}
	processors, err := l.processorIDs(nil)
	if err != nil {
		return now, err
	}
	now.states, err = l.ReadSinkStates(ctx, l.cfg.Source.Slot, processors)
	return now, err
}

// explain sets what these parked rows wait for.
func (l *ledgerConn) explain(ctx context.Context, rows []*ParkedRow) error {
	if len(rows) == 0 {
		return nil
	}
	now, err := l.readNow(ctx)
	if err != nil {
		return err
	}
	holders, err := l.findHolders(ctx, rows)
	if err != nil {
		return err
	}
	for _, p := range rows {
		if p.Status == "parked" {
			l.waits(p, holders[p], now)
		}
	}
	return nil
}

// findHolders returns the rows that hold these, by the row that is held.
func (l *ledgerConn) findHolders(ctx context.Context, rows []*ParkedRow) (map[*ParkedRow]*ledger.Holder, error) {
	var untried []*ParkedRow
	var details []*ledger.ParkedRow
	for _, p := range rows {
		if p.Status == "parked" && p.details.NextAttempt == nil {
			untried, details = append(untried, p), append(details, p.details)
		}
	}
	found, err := l.Holders(ctx, details)
	holders := map[*ParkedRow]*ledger.Holder{}
	for i, h := range found {
		if h != nil {
			holders[untried[i]] = h
		}
	}
	return holders, err
}

// waits sets what a parked row waits for: what must happen first, if several things must. Every time that it names is still to come.
func (l *ledgerConn) waits(p *ParkedRow, holder *ledger.Holder, now sinksNow) {
	at := p.details.Now
	set := func(what WaitsFor, until *time.Time, format string, args ...any) {
		p.WaitsFor, p.WaitsUntil, p.Waits = what, until, fmt.Sprintf(format, args...)
	}
	state := now.states[p.key().Processor]
	if holder != nil {
		p.Behind = holder.EventID
	}
	away := state.Condition == string(monitoring.ConditionAway)
	asks := "it is asked now"
	var asksAt *time.Time
	if state.AsksAt.After(at) {
		asksAt = &state.AsksAt
		asks = "it is asked next at " + clock(state.AsksAt)
	}
	switch {
	case holder != nil && holder.Status == "dead":
		set(WaitsForEvent, nil, "behind the dead letter %s", holder.EventID)
	case l.isPaused(p.key().Processor):
		set(WaitsForResume, nil, "the sink is paused: outbox-cdc resume %s", p.Sink)
	case !now.streaming:
		set(WaitsForConnector, nil, "a connector: none streams from slot %q", l.cfg.Source.Slot)
	case holder != nil:
		set(WaitsForEvent, nil, "behind %s", holder.EventID)
	case away && p.NextAttempt != nil && asksAt != nil && p.NextAttempt.After(*asksAt):
		set(WaitsForAttempt, p.NextAttempt, "its next attempt, in %s; the destination is away, and %s", in(p.NextAttempt.Sub(at)), asks)
	case away:
		set(WaitsForDestination, asksAt, "the destination, which is away since %s: %s", clock(state.Since), asks)
	case p.NextAttempt != nil:
		set(WaitsForAttempt, p.NextAttempt, "its next attempt, in %s", in(p.NextAttempt.Sub(at)))
	case p.details.NextAttempt != nil && state.Condition == string(monitoring.ConditionSuspect):
		set(WaitsForRate, nil, "its turn: the sink is suspect, so at most %d events a second are tried again", state.Rate)
	default:
		set(WaitsForTurn, nil, "its turn")
	}
}

// in returns how long it takes until something happens, which is a second at least.
func in(d time.Duration) string { return max(time.Second, d.Round(time.Second)).String() }

// clock returns a time as a person reads it.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }
