package connector

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
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
		changed: func(s gobreaker.State) { b.seen = append(b.seen, s.String()) },
	}
	b.breaker = newBreaker(owner, BreakerConfig{Enabled: true, MaxFailures: 3, ResetTimeout: time.Minute})
	t.Cleanup(b.close)
	for i := range 2 {
		b.lanes = append(b.lanes, newLane(&sharedSink{}, i, rowSource{}, nil))
	}
	b.attach(b.lanes)
	return b
}

// call makes one Deliver call of a lane. Each letter is the result of one message, of an aggregate of its own: a is accepted, u unavailable,
// r refused, d refused to death. An n says that the messages were tried before. call reports whether the breaker permitted it.
func (b *breakerBench) call(lane int, letters string) (permitted bool) {
	p := b.may(lane, time.Now())
	if !p.ok {
		return false
	}
	c, ok := b.begin(lane)
	if !ok {
		return false
	}
	v := verdict{news: !strings.Contains(letters, "n")}
	v.accepted, v.away = strings.Count(letters, "a"), strings.Count(letters, "u")
	v.answered = strings.Count(letters, "r") + strings.Count(letters, "d")
	v = b.weigh(v)
	for range strings.Count(letters, "d") {
		if !v.brokenNow() {
			v.died(time.Now().UnixNano()) // of an aggregate of its own
		}
		time.Sleep(time.Nanosecond) // the next one's hash
	}
	v.judge(c)
	return true
}

func (b *breakerBench) want(state gobreaker.State) {
	b.t.Helper()
	if got := b.state(); got != state {
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

// Three calls in a row without an answer, or five dead aggregates with nothing accepted in between, open a breaker. Other results do not.
func TestBreakerOpens(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		calls string
		open  bool
		after parkAfter
	}{
		"away three times in a row":            {calls: "u u u", open: true},
		"something was accepted between":       {calls: "u u a u u"},
		"something was answered between":       {calls: "u u r u u"},
		"accepted beside":                      {calls: "ua ua ua ua"},
		"old messages say nothing new":         {calls: "nu nu nu nu nu"},
		"under never every call counts":        {calls: "nu nu nu", after: parkNever, open: true},
		"refusals say that it is there":        {calls: "r r r r r r"},
		"five aggregates dead":                 {calls: "d d d d d", open: true},
		"five aggregates dead within one call": {calls: "dddddd", open: true},
		"something was accepted among deaths":  {calls: "d d d d a d d d d"},
		"accepted beside a death":              {calls: "da da da da da da"},
		"deaths under never":                   {calls: "d d d d d d", after: parkNever},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBreakerBench(t, tt.after)
				calls := strings.Fields(tt.calls)
				for i, c := range calls {
					if b.state() != gobreaker.StateClosed {
						t.Fatalf("it opened before call %d of %q", i, tt.calls)
					}
					b.call(i%2, c)
				}
				if open := b.state() == gobreaker.StateOpen; open != tt.open {
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
			b.want(gobreaker.StateHalfOpen)
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
			b.want(gobreaker.StateOpen)
			time.Sleep(time.Minute + turnStep/10)
		}
		c, ok := b.begin(1) // out of turn, which may asks after
		if _, second := b.begin(0); !ok || second || !c.probe {
			t.Errorf("probes: %t, %t", ok, second)
		}
		b.cancel(c)
		time.Sleep(time.Second)
		if !b.call(0, "r") { // an answer: it is there
			t.Error("no probe after one that was cancelled")
		}
		b.want(gobreaker.StateClosed)
	})
}

// After a receiver was taken for broken, only an accepted message closes the breaker, and no message dies by a refusal meanwhile.
func TestBreakerBroken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBreakerBench(t, parkSoon)
		b.call(0, "ddddddd")
		if n := len(b.deaths); n != brokenAfter {
			t.Errorf("%d aggregates died, want %d", n, brokenAfter)
		}
		for _, probe := range []string{"r", "d", "u"} {
			time.Sleep(time.Minute + time.Second)
			b.call((b.last+1)%2, probe)
			b.want(gobreaker.StateOpen)
		}
		time.Sleep(time.Minute + time.Second)
		b.call((b.last+1)%2, "a")
		b.want(gobreaker.StateClosed)
		b.call(0, "d")
		b.want(gobreaker.StateClosed)
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
		if _, ok := b.begin(0); !ok {
			t.Fatal("no probe")
		}
		b.attach(b.lanes)
		time.Sleep(time.Second)
		if !b.call(0, "a") {
			t.Error("the next session may not probe")
		}
		b.want(gobreaker.StateClosed)
	})
}
