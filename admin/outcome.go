package admin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// outcomeWait is how long a command waits to see what has become of it. A connector hears of it at once, asks the destination, and writes
	// what came of that within a second.
	outcomeWait = 3 * time.Second
	// outcomePoll is how often it looks.
	outcomePoll = 200 * time.Millisecond
	// stateLag is how old what the connector has written may be, with some time to write it.
	stateLag = 1500 * time.Millisecond
)

// Outcome says what has become of a command within a few seconds.
type Outcome string

// The outcomes.
const (
	OutcomePaused      Outcome = "paused"       // the sink is paused, so nothing is tried
	OutcomeNoConnector Outcome = "no_connector" // none streams: the command takes effect when one does
	OutcomeTold        Outcome = "told"         // the connector was told, and the sink was not known to be away
	OutcomeAnswered    Outcome = "answered"     // the sink was away, and has answered
	OutcomeAway        Outcome = "away"         // the sink was asked, and is still away
	OutcomeNoAnswer    Outcome = "no_answer"    // the sink was away, and nothing has shown yet whether it still is
	// OutcomeNotConfigured: the ledger has the sink, and the configuration does not, so that nobody delivers to it.
	OutcomeNotConfigured Outcome = "not_configured"
)

// SinkNow is how a sink does, as far as that is known.
type SinkNow struct {
	Outcome Outcome `json:"outcome"`
	// Condition is that of outbox_processors.state; empty if no connector streams. Since, AsksAt and Cause are there if they are known.
	// AsksAt is never in the past.
	Condition string     `json:"condition,omitempty"`
	Since     *time.Time `json:"since,omitempty"`
	AsksAt    *time.Time `json:"asks_at,omitempty"`
	Cause     string     `json:"cause,omitempty"`
	// Rate is how many events a suspect sink is asked again for in a second, at most.
	Rate int `json:"rate,omitempty"`
}

// watchOutcome waits until it is known for each of these sinks what has become of a command, for outcomeWait at most. before is what was
// known before the command.
func (l *ledgerConn) watchOutcome(ctx context.Context, before sinksNow, ids []int32) (outcomes map[int32]SinkNow, streaming bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, outcomeWait)
	defer cancel()
	outcomes = map[int32]SinkNow{}
	began := time.Now()
	for {
		now, err := l.readNow(ctx)
		at := time.Time{}
		if err == nil {
			at, err = l.timeBefore(ctx, 0)
		}
		switch {
		case err != nil && len(outcomes) > 0 && ctx.Err() != nil:
			return outcomes, streaming, nil
		case err != nil:
			return nil, false, fmt.Errorf("the command has taken effect, and what has come of it cannot be read: %w", err)
		}
		streaming = now.streaming
		settled := true
		for _, id := range ids {
			o := outcomeOf(before.states[id], now.states[id], at)
			switch {
			case !l.isConfigured(id):
				o = SinkNow{Outcome: OutcomeNotConfigured}
			case !now.streaming:
				o = SinkNow{Outcome: OutcomeNoConnector}
			case l.isPaused(id):
				o.Outcome = OutcomePaused
			}
			outcomes[id] = o
			// What was written just before the command may not be all that had happened by then.
			fresh := at.Sub(before.states[id].At) > outcomeWait || time.Since(began) > stateLag || o.Outcome != OutcomeTold
			settled = settled && fresh && o.Outcome != OutcomeNoAnswer && (o.Condition != string(monitoring.ConditionPaused) || l.isPaused(id))
		}
		if settled {
			return outcomes, streaming, nil
		}
		select {
		case <-time.After(outcomePoll):
		case <-ctx.Done():
			return outcomes, streaming, nil
		}
	}
}

// outcomeOf compares what is known of a sink with what was known before the command.
func outcomeOf(before, now ledger.SinkState, at time.Time) SinkNow {
	const away = string(monitoring.ConditionAway)
	bad := func(st ledger.SinkState) bool {
		return slices.Contains([]monitoring.Condition{monitoring.ConditionAway, monitoring.ConditionFailing, monitoring.ConditionUnreachable}, monitoring.Condition(st.Condition))
	}
	o := SinkNow{Outcome: OutcomeTold, Condition: now.Condition, Cause: now.Cause, Rate: now.Rate}
	if o.Condition == "" { // the connector has written nothing, because the sink is well
		o.Condition = string(monitoring.ConditionOK)
	}
	if !now.Since.IsZero() {
		o.Since = &now.Since
	}
	if now.AsksAt.After(at) {
		o.AsksAt = &now.AsksAt
	}
	switch {
	case now.Condition == away && o.AsksAt != nil && now.AsksAt.After(before.AsksAt) && now.At.After(before.At):
		o.Outcome = OutcomeAway // it was asked, and will be again
	case bad(now):
		o.Outcome = OutcomeNoAnswer
	case bad(before):
		o.Outcome = OutcomeAnswered
	}
	return o
}
