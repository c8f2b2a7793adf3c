package connector

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// parkAfter is the park_after of a bench.
type parkAfter int

const (
	parkSoon parkAfter = iota
	parkNever
)

// breakerBench makes calls to the breaker of a sink with two lanes. The breaker opens after three failures, for a minute.
type breakerBench struct {
	*breaker
	t     *testing.T
	lanes []*lane
	seen  []string
}

func newBreakerBench(t *testing.T, after parkAfter) *breakerBench {
	b := &breakerBench{t: t}
	owner := breakerOwner{
		name: "s", never: after == parkNever, logger: slog.New(slog.DiscardHandler),
		changed: func(s breakerState, _ time.Time) { b.seen = append(b.seen, s.String()) },
	}
	b.breaker = newBreaker(owner, BreakerConfig{Enabled: true, MaxFailures: 3, ResetTimeout: time.Minute})
	t.Cleanup(b.close)
	for i := range 2 {
		b.lanes = append(b.lanes, newLane(&sharedSink{}, i, rowSource{}, nil))
	}
	b.attach(b.lanes)
	return b
}

// call makes one Deliver call of a lane. Each letter is the result of one message: a is accepted, u unavailable, r answered (a
// refusal, or a topic that is away), x not attempted. An n says that the messages were tried before, an e that the session has
// ended the call. call reports whether the breaker permitted it.
func (b *breakerBench) call(lane int, letters string) (permitted bool) {
	p := b.claim(lane, time.Now())
	if !p.ok {
		return false
	}
	b.judge(verdict{
		accepted: strings.Count(letters, "a"), away: strings.Count(letters, "u"), answered: strings.Count(letters, "r"),
		news: !strings.Contains(letters, "n"), ended: strings.Contains(letters, "e"), probe: p.probe,
	})
	return true
}

// current returns the present state.
func (b *breakerBench) current() breakerState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

func (b *breakerBench) want(state breakerState) {
	b.t.Helper()
	if got := b.current(); got != state {
		b.t.Errorf("%s, want %s", got, state)
	}
}

// asked returns how many lanes the breaker has asked to park since the last call of asked.
func (b *breakerBench) asked() int {
	n := 0
	for _, l := range b.lanes {
		if l.asks.Swap(0)&askPark != 0 {
			n++
		}
	}
	return n
}

// Three calls in a row that found the destination away open a breaker. Other results do not.
func TestBreakerOpens(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		calls string
		open  bool
		after parkAfter
	}{
		"away three times in a row":        {calls: "u u u", open: true},
		"something was accepted between":   {calls: "u u a u u"},
		"something was answered between":   {calls: "u u r u u"},
		"accepted beside":                  {calls: "ua ua ua ua"},
		"old messages say nothing new":     {calls: "nu nu nu nu nu"},
		"under never every call counts":    {calls: "nu nu nu", after: parkNever, open: true},
		"refusals say that it is there":    {calls: "r r r r r r"},
		"not attempted says nothing":       {calls: "u x u x u", open: true},
		"calls that the session has ended": {calls: "ue ue ue ue"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBreakerBench(t, tt.after)
				calls := strings.Fields(tt.calls)
				for i, c := range calls {
					if b.current() != breakerClosed {
						t.Fatalf("it opened before call %d of %q", i, tt.calls)
					}
					b.call(i%2, c)
				}
				if open := b.current() == breakerOpen; open != tt.open {
					t.Errorf("after %q the breaker is open: %t", tt.calls, open)
				}
				want := 0
				if tt.open && tt.after != parkNever {
					want = 2
				}
				if n := b.asked(); n != want {
					t.Errorf("%d lanes were asked to park, want %d", n, want)
				}
			})
		})
	}
}

// A half-open breaker permits one message, the probe. The lanes take turns to send it.
func TestBreakerProbes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerBench(t, parkSoon)
		for range 3 {
			b.call(0, "u")
		}
		time.Sleep(59 * time.Second)
		if b.call(0, "a") {
			t.Error("a call was permitted while open")
		}
		time.Sleep(time.Second + turnStep/10)
		for range 3 {
			b.want(breakerHalfOpen)
			turn := (b.last + 1) % 2
			if b.call(1-turn, "a") {
				t.Errorf("lane %d probed out of turn", 1-turn)
			}
			if p := b.may(1-turn, time.Now()); p.wait <= 0 || p.wait > turnStep {
				t.Errorf("its turn comes in %s", p.wait)
			}
			if !b.call(turn, "u") {
				t.Errorf("lane %d may not probe", turn)
			}
			b.want(breakerOpen)
			time.Sleep(time.Minute + turnStep/10)
		}
		time.Sleep(time.Second)
		first, second := b.claim(1, time.Now()), b.claim(0, time.Now())
		if !first.probe || second.ok {
			t.Errorf("probes: %+v, %+v", first, second)
		}
		b.judge(verdict{probe: true}) // it was not attempted
		b.want(breakerHalfOpen)
		time.Sleep(time.Second)
		if !b.call(0, "r") { // an answer: it is there
			t.Error("no probe after one that was not attempted")
		}
		b.want(breakerClosed)
	})
}

// A person who wants to know now does not wait for the reset time.
func TestBreakerAsksNow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerBench(t, parkSoon)
		b.askNow()
		b.want(breakerClosed)
		for range 3 {
			b.call(0, "u")
		}
		b.askNow()
		b.want(breakerHalfOpen)
		if !b.call(1, "u") {
			t.Error("it may not probe")
		}
		time.Sleep(time.Minute - time.Second)
		b.want(breakerOpen) // the reset time begins anew
		time.Sleep(time.Second + turnStep)
		if !b.call(0, "a") {
			t.Error("it may not probe after the reset time")
		}
		if want := []string{"closed", "open", "half-open", "open", "half-open", "closed"}; !slices.Equal(b.seen, want) {
			t.Errorf("states %v, want %v", b.seen, want)
		}
	})
}

// If a session ends while its probe is being delivered, the next session can probe: the breaker does not wait for the old probe.
func TestBreakerOutlivesSessions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerBench(t, parkSoon)
		for range 3 {
			b.call(0, "u")
		}
		time.Sleep(2 * time.Minute)
		if !b.claim(0, time.Now()).probe {
			t.Fatal("no probe")
		}
		b.attach(b.lanes)
		time.Sleep(time.Second)
		if !b.call(0, "a") {
			t.Error("the next session may not probe")
		}
		b.want(breakerClosed)
	})
}

// Something that says that the destination is back makes an open breaker ask at once, but not twice within a reset time.
func TestBreakerAsksEarly(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]func(b *breakerBench){
		"a check":                            func(b *breakerBench) { b.checked() },
		"an answer to a call from before":    func(b *breakerBench) { b.judge(verdict{accepted: 1}) },
		"a refusal of a message from before": func(b *breakerBench) { b.judge(verdict{answered: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBreakerBench(t, parkSoon)
				says(b)
				b.want(breakerClosed)
				for range 3 {
					b.call(0, "u")
				}
				b.judge(verdict{answered: 1, ended: true}) // the session has ended the call: no answer
				b.want(breakerOpen)
				says(b)
				b.want(breakerHalfOpen)
				if !b.call(1, "u") {
					t.Error("it may not probe")
				}
				says(b)
				b.want(breakerOpen)
				time.Sleep(time.Minute + turnStep)
				b.call(0, "u")
				says(b)
				b.want(breakerHalfOpen)
			})
		})
	}
}

// A check closes a breaker that has no message to ask with. It does not while a probe is under way, or may be soon.
func TestBreakerCheckedWithNothingToAsk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerBench(t, parkSoon)
		for range 3 {
			b.call(0, "u")
		}
		time.Sleep(time.Minute + time.Second)
		b.checked()
		b.want(breakerHalfOpen) // a lane may just be reading
		time.Sleep(nothingToAsk)
		probe := b.claim(0, time.Now())
		b.checked()
		if b.want(breakerHalfOpen); !probe.probe {
			t.Error("no probe")
		}
		b.judge(verdict{probe: true})
		time.Sleep(nothingToAsk)
		b.checked()
		b.want(breakerClosed)
	})
}

// The lanes of a new session have not read their rows yet, so that a check at its beginning proves nothing.
func TestBreakerCheckedAtBeginOfSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerBench(t, parkSoon)
		for range 3 {
			b.call(0, "u")
		}
		time.Sleep(time.Minute + nothingToAsk) // half-open: the session before had nothing to ask with, or has ended
		b.attach(b.lanes)
		b.checked()
		b.want(breakerHalfOpen)
		time.Sleep(nothingToAsk)
		b.checked()
		b.want(breakerClosed)
	})
}

// backs returns how many lanes the breaker has told that the destination is back, since the last call of backs.
func (b *breakerBench) backs() int {
	n := 0
	for _, l := range b.lanes {
		if l.asks.Swap(0)&askBack != 0 {
			n++
		}
	}
	return n
}

// All lanes hear that the destination is back: when the breaker closes, and when a closed one has an answer after calls that had none,
// but then once in a reset time at most.
func TestBreakerTellsThatItIsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerBench(t, parkSoon)
		step := func(name, calls string, want int) {
			t.Helper()
			for c := range strings.FieldsSeq(calls) {
				b.call(0, c)
			}
			if got := b.backs(); got != want {
				t.Errorf("%s: %d lanes were told, want %d", name, got, want)
			}
		}
		before := time.Now()
		time.Sleep(time.Second)
		step("it was never away", "a r x a", 0)
		step("away", "u u", 0)
		step("not attempted", "x", 0)
		if b.backSince(before) {
			t.Error("it is back since before it was asked")
		}
		step("back", "a", 2)
		if !b.backSince(before) || b.backSince(time.Now()) {
			t.Error("it is not back since then")
		}
		step("and again", "u a u r", 0)
		time.Sleep(time.Minute)
		step("a reset time later", "nu r", 2)
		step("it opens", "u u u", 0)
		b.askNow()
		step("a probe in vain", "u", 0)
		b.askNow()
		time.Sleep(turnStep) // it is the other lane's turn
		step("it closes", "r", 2)
	})
}
