package admin

import (
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// What a parked row is said to wait for is what keeps it, and no time that is named is in the past.
func TestWaits(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(seconds int) *time.Time { return new(now.Add(time.Duration(seconds) * time.Second)) }
	away := func(asks int) ledger.SinkState {
		return ledger.SinkState{Condition: "away", Since: *at(-60), AsksAt: *at(asks)}
	}
	behind := func(status string) *ledger.Holder { return &ledger.Holder{EventID: "first", Status: status} }
	suspect := ledger.SinkState{Condition: "suspect", Rate: 40}
	for name, test := range map[string]struct {
		due    *time.Time
		holder *ledger.Holder
		paused bool
		idle   bool // no connector streams
		state  ledger.SinkState
		what   WaitsFor
		until  *time.Time
		text   string
	}{
		"its attempt":                    {due: at(90), what: WaitsForAttempt, until: at(90), text: "its next attempt, in 1m30s"},
		"its attempt, very soon":         {due: new(now.Add(time.Millisecond)), what: WaitsForAttempt, until: new(now.Add(time.Millisecond)), text: "its next attempt, in 1s"},
		"due":                            {due: at(-90), what: WaitsForTurn, text: "its turn"},
		"fresh":                          {what: WaitsForTurn, text: "its turn"},
		"failing":                        {due: at(9), state: ledger.SinkState{Condition: "failing"}, what: WaitsForAttempt, until: at(9), text: "its next attempt, in 9s"},
		"away, fresh":                    {state: away(10), what: WaitsForDestination, until: at(10), text: "the destination, which is away since 2026-01-02 03:03:05: it is asked next at 2026-01-02 03:04:15"},
		"away, due":                      {due: at(-1), state: away(10), what: WaitsForDestination, until: at(10), text: "the destination, which is away since 2026-01-02 03:03:05: it is asked next at 2026-01-02 03:04:15"},
		"away, due before it is asked":   {due: at(9), state: away(10), what: WaitsForDestination, until: at(10), text: "the destination, which is away since 2026-01-02 03:03:05: it is asked next at 2026-01-02 03:04:15"},
		"away, with a time of its own":   {due: at(30), state: away(10), what: WaitsForAttempt, until: at(30), text: "its next attempt, in 30s; the destination is away, and it is asked next at 2026-01-02 03:04:15"},
		"away, and asked now":            {due: at(30), state: ledger.SinkState{Condition: "away", Since: *at(-60)}, what: WaitsForDestination, text: "the destination, which is away since 2026-01-02 03:03:05: it is asked now"},
		"away, and just asked":           {state: away(-1), what: WaitsForDestination, text: "the destination, which is away since 2026-01-02 03:03:05: it is asked now"},
		"suspect, due":                   {due: at(-1), state: suspect, what: WaitsForRate, text: "its turn: the sink is suspect, so at most 40 events a second are tried again"},
		"suspect, not due":               {due: at(7), state: suspect, what: WaitsForAttempt, until: at(7), text: "its next attempt, in 7s"},
		"suspect, fresh":                 {state: suspect, what: WaitsForTurn, text: "its turn"},
		"behind":                         {holder: behind("parked"), state: away(10), what: WaitsForEvent, text: "behind first"},
		"behind a dead letter":           {holder: behind("dead"), paused: true, idle: true, what: WaitsForEvent, text: "behind the dead letter first"},
		"paused":                         {due: at(90), paused: true, state: away(10), what: WaitsForResume, text: "the sink is paused: outbox-cdc resume a"},
		"paused, behind":                 {holder: behind("parked"), paused: true, what: WaitsForResume, text: "the sink is paused: outbox-cdc resume a"},
		"no connector":                   {due: at(90), idle: true, what: WaitsForConnector, text: `a connector: none streams from slot "s"`},
		"no connector, behind":           {holder: behind("parked"), idle: true, what: WaitsForConnector, text: `a connector: none streams from slot "s"`},
		"a condition that is not known":  {due: at(-1), state: ledger.SinkState{Condition: "confused"}, what: WaitsForTurn, text: "its turn"},
		"paused by what the state says":  {state: ledger.SinkState{Condition: "paused"}, what: WaitsForTurn, text: "its turn"}, // it was resumed
		"no connector, whatever it said": {due: at(90), idle: true, state: away(10), what: WaitsForConnector, text: `a connector: none streams from slot "s"`},
	} {
		l := &ledgerConn{Client: &ledger.Client{Sinks: []ledger.KnownSink{{Processor: 1, Name: "a", Active: !test.paused}}}}
		l.cfg.Source.Slot = "s"
		p := l.shown(&ledger.ParkedRow{Key: checkpoint.Key{Processor: 1}, Status: "parked", NextAttempt: test.due, Now: now})
		l.waits(p, test.holder, sinksNow{streaming: !test.idle, states: map[int32]ledger.SinkState{1: test.state}})
		if p.WaitsFor != test.what || p.Waits != test.text || (p.WaitsUntil == nil) != (test.until == nil) || test.until != nil && !p.WaitsUntil.Equal(*test.until) {
			t.Errorf("%s:\n%s %v %q, want\n%s %v %q", name, p.WaitsFor, p.WaitsUntil, p.Waits, test.what, test.until, test.text)
		}
		for _, when := range []*time.Time{p.WaitsUntil, p.NextAttempt} {
			if when != nil && !when.After(now) {
				t.Errorf("%s: it names a time in the past", name)
			}
		}
		if test.holder != nil && p.Behind != test.holder.EventID {
			t.Errorf("%s: behind %q", name, p.Behind)
		}
	}
}
