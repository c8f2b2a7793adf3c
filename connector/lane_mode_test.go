package connector

import (
	"testing"
	"time"
)

// The tests of the decisions need no clock and no goroutine. Times are seconds after noon.
var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }

var testRules = laneRules{policy: parkFailed, batch: 10, maxHeld: 3, parkAfter: 10 * time.Second}

// permit is the permission of a closed breaker.
var permit = permission{ok: true}

func TestDecide(t *testing.T) {
	t.Parallel()
	never := laneRules{policy: retryInPlace, batch: 10, maxHeld: 3}
	once := laneRules{policy: discardFailed, batch: 10, maxHeld: 3, parkAfter: 10 * time.Second}
	sleep := action{kind: actSleep, until: noon.Add(longestSleep)}
	until := func(seconds int) action { return action{kind: actSleep, until: at(seconds)} }
	for name, tt := range map[string]struct {
		rules laneRules // testRules, if they are empty
		mode  mode
		facts facts
		want  action
	}{
		"live: nothing to do":            {mode: modeLive, facts: facts{permission: permit}, want: sleep},
		"live: arrivals":                 {mode: modeLive, facts: facts{permission: permit, arrivals: 3}, want: action{kind: actArrivals, most: 10}},
		"live: a Deliver is under way":   {mode: modeLive, facts: facts{permission: permit, arrivals: 3, delivering: true, began: at(-1)}, want: until(9)},
		"live: that Deliver hangs":       {mode: modeLive, facts: facts{permission: permit, arrivals: 3, delivering: true, began: at(-10)}, want: action{kind: actPark}},
		"live: it hangs, nobody waits":   {mode: modeLive, facts: facts{permission: permit, delivering: true, began: at(-10)}, want: sleep},
		"live: it hangs, never":          {rules: never, facts: facts{permission: permit, arrivals: 3, delivering: true, began: at(-10)}, want: sleep},
		"live: asked to park":            {mode: modeLive, facts: facts{permission: permit, park: true, arrivals: 3}, want: action{kind: actPark}},
		"live: paused":                   {mode: modeLive, facts: facts{permission: permit, paused: true, arrivals: 3}, want: action{kind: actCatchUp}},
		"live: rows have changed":        {mode: modeLive, facts: facts{permission: permit, changed: true, arrivals: 3}, want: action{kind: actCatchUp}},
		"live: a row is due":             {mode: modeLive, facts: facts{permission: permit, held: 1, dueAt: at(0)}, want: action{kind: actCatchUp}},
		"live: a row is due later":       {mode: modeLive, facts: facts{permission: permit, held: 1, dueAt: at(7)}, want: until(7)},
		"live: an aggregate is released": {mode: modeLive, facts: facts{permission: permit, held: 2, dueAt: at(7), releaseAt: at(0)}, want: action{kind: actCatchUp}},
		"live: too soon to look":         {mode: modeLive, facts: facts{permission: permit, held: 1, dueAt: at(0), catchUpAt: at(1)}, want: until(1)},
		"live: too many are held":        {mode: modeLive, facts: facts{permission: permit, held: 4, dueAt: at(7)}, want: action{kind: actCatchUp}},
		"live: a fast stream, few wait": {
			facts: facts{permission: permit, fast: true, arrivals: 3, began: noon.Add(-deliverPace / 3)},
			want:  action{kind: actSleep, until: noon.Add(-deliverPace / 3).Add(deliverPace)},
		},
		"live: a fast stream, a batch waits": {facts: facts{permission: permit, fast: true, arrivals: 10, began: noon}, want: action{kind: actArrivals, most: 10}},
		"live: the breaker is open":          {facts: facts{permission: permission{open: true}, arrivals: 3}, want: sleep},
		"live: another lane's turn to probe": {facts: facts{permission: permission{wait: time.Second}, arrivals: 3}, want: until(1)},
		"live: this lane probes":             {facts: facts{permission: permission{ok: true, probe: true}, arrivals: 3}, want: action{kind: actArrivals, most: 1, probe: true}},
		"live: eight batches are unrecorded": {facts: facts{permission: permit, arrivals: 3, unrecorded: maxUnrecorded}, want: sleep},
		"in place: what is in hand first": {
			rules: never, facts: facts{permission: permit, hand: 2, arrivals: 3, changed: true, held: 9}, want: action{kind: actHand, most: 10},
		},
		"in place: not before its time": {rules: never, facts: facts{permission: permit, hand: 2, arrivals: 3, handAt: at(5)}, want: until(5)},
		"in place: nobody was reached":  {rules: never, facts: facts{permission: permit, hand: 2, one: true}, want: action{kind: actHand, most: 1}},
		"in place: a death is not recorded": {
			rules: never, facts: facts{permission: permit, arrivals: 3, died: 7, committed: 6}, want: action{kind: actSleep, until: sleep.until, hurry: 7},
		},
		"tried once, and the breaker is open": {rules: once, facts: facts{permission: permission{open: true}, arrivals: 3}, want: action{kind: actDiscard}},

		"live: no lease":                        {mode: modeLive, facts: facts{permission: permission{ok: true, lease: time.Second}, arrivals: 3}, want: until(1)},
		"live: no lease, and a Deliver hangs":   {mode: modeLive, facts: facts{permission: permission{ok: true, lease: time.Second}, arrivals: 3, delivering: true, began: at(-10)}, want: action{kind: actPark}},
		"in place: no lease":                    {rules: never, facts: facts{permission: permission{ok: true, lease: time.Second}, hand: 2}, want: until(1)},
		"tried once, no lease, it is open":      {rules: once, facts: facts{permission: permission{open: true, lease: time.Second}, arrivals: 3}, want: until(1)},
		"waiting: no lease, but a read":         {mode: modeWaiting, facts: facts{permission: permission{ok: true, lease: time.Second}, arrivals: 3}, want: action{kind: actRead, most: 10}},
		"parking: no lease":                     {mode: modeParking, facts: facts{permission: permission{ok: true, lease: time.Second}, rows: 20}, want: until(1)},
		"waiting: read":                         {mode: modeWaiting, facts: facts{permission: permit, arrivals: 3}, want: action{kind: actRead, most: 10}},
		"waiting: all must be committed":        {mode: modeWaiting, facts: facts{permission: permit, given: 7, outcomes: 5, committed: 6}, want: action{kind: actSleep, until: sleep.until, hurry: 7}},
		"parking: all outcomes must be":         {mode: modeParking, facts: facts{permission: permit, given: 7, outcomes: 5, committed: 4}, want: action{kind: actSleep, until: sleep.until, hurry: 5}},
		"parking: no more than these":           {mode: modeParking, facts: facts{permission: permit, given: 7, outcomes: 5, committed: 5}, want: action{kind: actRead, most: 10}},
		"waiting: what was just parked":         {mode: modeWaiting, facts: facts{permission: permit, ungiven: true}, want: until(0)},
		"waiting: a read is under way":          {mode: modeWaiting, facts: facts{permission: permit, reading: true, arrivals: 3}, want: sleep},
		"waiting: it opens during a read":       {mode: modeWaiting, facts: facts{permission: permission{open: true}, reading: true, arrivals: 3}, want: action{kind: actPark}},
		"waiting: the same, never":              {rules: never, mode: modeWaiting, facts: facts{permission: permission{open: true}, reading: true, arrivals: 3}, want: sleep},
		"waiting: it is paused during a read":   {mode: modeWaitedOnce, facts: facts{permission: permit, paused: true, reading: true}, want: action{kind: actPark}},
		"waiting: a Deliver of rows hangs":      {mode: modeWaitedOnce, facts: facts{permission: permit, arrivals: 3, delivering: true, began: at(-10)}, want: action{kind: actPark}},
		"waiting: rows to deliver":              {mode: modeWaitedOnce, facts: facts{permission: permit, rows: 20, arrivals: 3}, want: action{kind: actRows, most: 10}},
		"parking: arrivals":                     {mode: modeParking, facts: facts{permission: permit, rows: 20, arrivals: 3}, want: action{kind: actParkArrivals}},
		"parking: paused":                       {mode: modeParking, facts: facts{permission: permit, paused: true, rows: 20}, want: sleep},
		"parking: the breaker is open":          {mode: modeParking, facts: facts{permission: permission{open: true}, rows: 20}, want: sleep},
		"parking: this lane probes":             {mode: modeParking, facts: facts{permission: permission{ok: true, probe: true}, rows: 20}, want: action{kind: actRows, most: 1, probe: true}},
		"parking: the recorder's queue is long": {mode: modeParking, facts: facts{permission: permit, rows: 20, unrecorded: 4, unrecordedRows: maxCatchingRows}, want: sleep},
		"parking: not before its time":          {mode: modeParking, facts: facts{permission: permit, readAt: at(1)}, want: until(1)},
		"parking: a person has changed rows":    {mode: modeParking, facts: facts{permission: permit, readAt: at(1), changed: true}, want: action{kind: actRead, most: 10}},
		"parking: a Deliver that hangs is old":  {mode: modeParking, facts: facts{permission: permit, delivering: true, began: at(-60)}, want: sleep},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rules := tt.rules
			if rules == (laneRules{}) {
				rules = testRules
			}
			if got := rules.decide(tt.mode, &tt.facts, noon); got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestAfterRead(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		mode  mode
		found found
		want  mode
		pause bool
	}{
		"nothing, and arrivals waited all the time": {modeWaiting, found{whole: true}, modeLive, false},
		"nothing, and some are held":                {modeWaitedOnce, found{whole: true, heads: 3}, modeLive, false},
		"too many are held":                         {modeWaiting, found{whole: true, heads: 4}, modeParking, true},
		"nothing, in the middle of a pass":          {modeWaiting, found{}, modeWaiting, false},
		"likewise, after a Deliver":                 {modeWaitedOnce, found{}, modeWaitedOnce, false},
		"nothing, and arrivals were parked":         {modeParking, found{}, modeWaiting, false},
		"a few rows":                                {modeWaiting, found{rows: 4, fresh: 4, whole: true}, modeWaitedOnce, false},
		"a few rows again":                          {modeWaitedOnce, found{rows: 4, fresh: 4, whole: true}, modeParking, false},
		"a few rows, and arrivals were parked":      {modeParking, found{rows: 4, fresh: 4}, modeWaiting, false},
		"more than a batch":                         {modeWaiting, found{rows: 11, fresh: 11, whole: true}, modeParking, false},
		"more than a read":                          {modeWaiting, found{rows: 4, fresh: 4, more: true, whole: true}, modeParking, false},
		"a row for a probe":                         {modeWaiting, found{rows: 1, fresh: 4, probe: true, whole: true}, modeParking, false},
		"no row for a probe":                        {modeWaiting, found{probe: true, whole: true}, modeLive, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, pause := testRules.afterRead(tt.mode, tt.found); got != tt.want || pause != tt.pause {
				t.Errorf("got mode %d, pause %t; want %d, %t", got, pause, tt.want, tt.pause)
			}
		})
	}
}
