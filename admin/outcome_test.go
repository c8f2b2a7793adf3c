package admin

import (
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// What a command says has become of it is what the connector has written after the command.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	away := func(asks, written int) ledger.SinkState {
		return ledger.SinkState{Condition: "away", Since: at(-60), AsksAt: at(asks), At: at(written), Cause: "refused"}
	}
	asking := ledger.SinkState{Condition: "away", Since: at(-60), At: at(-1), Cause: "refused"}
	for name, test := range map[string]struct {
		before, now ledger.SinkState
		want        Outcome
		condition   string
	}{
		"well":                         {want: OutcomeTold, condition: "ok"},
		"suspect":                      {now: ledger.SinkState{Condition: "suspect", Rate: 40}, want: OutcomeTold, condition: "suspect"},
		"away, and not asked yet":      {before: away(9, -9), now: away(9, -9), want: OutcomeNoAnswer, condition: "away"},
		"away, and asked now":          {before: away(9, -9), now: asking, want: OutcomeNoAnswer, condition: "away"},
		"away, and asked in vain":      {before: away(9, -9), now: away(19, 0), want: OutcomeAway, condition: "away"},
		"away, and asked in vain long": {before: asking, now: away(19, 0), want: OutcomeAway, condition: "away"},
		"away, and stale":              {before: away(-9, -19), now: away(-1, 0), want: OutcomeNoAnswer, condition: "away"},
		"it answers":                   {before: away(9, -9), now: ledger.SinkState{Condition: "ok"}, want: OutcomeAnswered, condition: "ok"},
		"it answers, and is suspect":   {before: away(9, -9), now: ledger.SinkState{Condition: "suspect", Rate: 40}, want: OutcomeAnswered, condition: "suspect"},
		"failing":                      {before: ledger.SinkState{Condition: "failing"}, now: ledger.SinkState{Condition: "failing"}, want: OutcomeNoAnswer, condition: "failing"},
		"failing no more":              {before: ledger.SinkState{Condition: "failing"}, now: ledger.SinkState{Condition: "ok"}, want: OutcomeAnswered, condition: "ok"},
		"it went away just now":        {now: away(9, 0), want: OutcomeAway, condition: "away"},
	} {
		got := outcomeOf(test.before, test.now, now)
		if got.Outcome != test.want || got.Condition != test.condition || got.AsksAt != nil && !got.AsksAt.After(now) {
			t.Errorf("%s: %+v, want %s, %s", name, got, test.want, test.condition)
		}
	}
}
