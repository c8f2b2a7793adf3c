package connector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var errNotThere = errors.New("connection refused")

// checkable is a sink that accepts everything, and is checked by a function.
type checkable struct {
	fakeSink
	check func(ctx context.Context, topics []string) ([]sinks.TopicCheck, error)
}

func (c checkable) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	return c.check(ctx, topics)
}

// checkBench is a sink with a state and a breaker, and what checks it in a session.
type checkBench struct {
	*sinkCheck
	health monitoring.Health

	mu     sync.Mutex
	log    bytes.Buffer
	checks []time.Duration // when it was checked, since the bench was made
	answer error
	found  []sinks.TopicCheck
}

// Write takes what is logged.
func (b *checkBench) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.Write(line)
}

// finds sets what the checks find from now on.
func (b *checkBench) finds(found []sinks.TopicCheck, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.found, b.answer = found, err
}

// checked returns when it was checked.
func (b *checkBench) checked() []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.checks
}

func newCheckBench(topics ...string) *checkBench {
	b := &checkBench{}
	logger := slog.New(slog.NewTextHandler(b, nil))
	state := newSinkState(observedSink{name: "s", health: &b.health, logger: logger})
	began := time.Now()
	b.sinkCheck = &sinkCheck{
		topics: topics, every: 10 * time.Second, state: state,
		breaker: newBreaker(breakerOwner{name: "s", logger: logger, changed: state.breakerIs}, BreakerConfig{Enabled: true, MaxFailures: 1, ResetTimeout: time.Hour}),
		sink: checkable{check: func(_ context.Context, topics []string) ([]sinks.TopicCheck, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.checks = append(b.checks, time.Since(began))
			if !slices.Equal(topics, b.topics) {
				return nil, fmt.Errorf("these topics are checked: %q", topics)
			}
			return b.found, b.answer
		}},
	}
	state.begin(1)
	return b
}

func (b *checkBench) run(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.sinkCheck.run(ctx)
	}()
	synctest.Wait()
	return func() { cancel(); <-done }
}

// logged returns what was logged since the last call, one message a line.
func (b *checkBench) logged() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.log.Reset()
	var out []string
	for line := range strings.Lines(b.log.String()) {
		_, line, _ = strings.Cut(line, "level=")
		level, rest, _ := strings.Cut(line, " msg=")
		out = append(out, level+" "+strings.Trim(strings.TrimSpace(rest), `"`))
	}
	return strings.Join(out, "\n")
}

func (b *checkBench) expect(t *testing.T, when, detail, logged string) {
	t.Helper()
	synctest.Wait()
	c := b.health.Report().Components["sink:s"]
	if (c.Status == monitoring.LevelOK) != (detail == "") || !strings.Contains(c.Detail, detail) {
		t.Errorf("%s: /readyz shows %+v, want %q", when, c, detail)
	}
	if got := b.logged(); (got == "") != (logged == "") || !strings.Contains(got, logged) || strings.Contains(got, "\n") {
		t.Errorf("%s: the log says %q, want %q", when, got, logged)
	}
}

// A sink that was never there is degraded before its first event, with one line of the log however long that lasts, until a check finds it.
func TestCheckFindsSinkAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newCheckBench()
		b.finds(nil, errNotThere)
		stop := b.run(t.Context())
		b.expect(t, "at once", "not reachable since 2000-01-01T00:00:00Z: connection refused", `WARN sink is not reachable" sink=s err="connection refused`)
		time.Sleep(time.Hour)
		b.expect(t, "after an hour", "connection refused", "")
		checks := b.checked()
		for i, at := range checks[1:] {
			if wait := at - checks[i]; wait < 8*time.Second || wait > 10*time.Second {
				t.Fatalf("checked after %s, want 8 s to 10 s", wait)
			}
		}
		b.finds(nil, nil)
		time.Sleep(10 * time.Second)
		b.expect(t, "it is back", "", `INFO sink is reachable again" sink=s after=1h0m`)
		before := len(b.checked())
		time.Sleep(time.Hour)
		if len(b.checked()) < before+300 {
			t.Errorf("nothing was accepted in an hour, and it was checked %d times", len(b.checked())-before)
		}
		b.state.answered(answer{counts: monitoring.Counts{Delivered: 1}})
		before = len(b.checked())
		time.Sleep(time.Hour)
		if len(b.checked()) != before {
			t.Error("it has accepted a message, and is checked")
		}
		stop()
		b.state.begin(1)
		stop = b.run(t.Context())
		if len(b.checked()) != before+1 {
			t.Errorf("a new session has checked it %d times, want once", len(b.checked())-before)
		}
		stop()
	})
}

// What is accepted ends what a check has found, and counts for more than a check that began before it.
func TestAcceptanceEndsUnreachable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newCheckBench()
		b.finds(nil, errNotThere)
		b.once(t.Context())
		b.expect(t, "checked", "connection refused", "WARN sink is not reachable")
		b.state.answered(answer{counts: monitoring.Counts{Failed: 1}, cause: errors.New("500")})
		b.expect(t, "refused", "connection refused", "")
		time.Sleep(time.Second)
		b.state.answered(answer{counts: monitoring.Counts{Delivered: 1}})
		b.expect(t, "accepted", "", "INFO sink is reachable again")
		b.state.checked(checkResult{began: time.Now().Add(-time.Second), err: errNotThere})
		b.expect(t, "a check that began before", "", "")
		b.state.checked(checkResult{began: time.Now(), err: errNotThere})
		b.expect(t, "a check that began after", "connection refused", "WARN sink is not reachable")
	})
}

// A topic that is missing degrades the sink, until a check finds the topic or it accepts a message. Other topics change nothing.
func TestCheckFindsTopicMissing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newCheckBench("orders", "https://hooks.test/s3cret")
		there := []sinks.TopicCheck{{Kind: "topic", Topic: "orders"}, {Kind: "URL", Topic: "https://hooks.test/s3cret"}}
		gone := slices.Clone(there)
		gone[0].Err, gone[0].Remedy = errors.New("unknown topic"), "make orders"
		gone[1].Err = errors.New("404")
		b.finds(gone, nil)
		b.once(t.Context())
		b.expect(t, "both are missing", `topic "orders" cannot be used: unknown topic; make it: make orders; URL "https://hooks.test/***" cannot be used: 404`,
			`WARN topics of the sink cannot be used" sink=s topics="orders https://hooks.test/***"`)
		b.once(t.Context())
		b.expect(t, "the same again", "orders", "")
		b.state.answered(answer{counts: monitoring.Counts{Delivered: 1}})
		b.state.topicAccepts("others")
		b.expect(t, "another one accepts", "orders", "")
		if !b.state.needsCheck() {
			t.Error("topics are missing, and are not checked again")
		}
		b.state.topicAccepts("orders")
		b.expect(t, "one accepts", `URL "https://hooks.test/***" cannot be used`, "")
		b.finds(there, nil)
		b.once(t.Context())
		b.expect(t, "all are there", "", "INFO all topics of the sink can be used again")
		b.finds(gone[:1], nil)
		b.only, b.topics = true, b.topics[:1]
		b.once(t.Context())
		b.expect(t, "the only topic is missing", `not reachable since 2000-01-01T00:00:00Z: topic "orders" cannot be used`, "WARN sink is not reachable")
	})
}

// A check that hangs is given up after ten seconds, and at once when the session ends.
func TestCheckHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newCheckBench()
		b.sink = checkable{check: func(ctx context.Context, _ []string) ([]sinks.TopicCheck, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}}
		stop := b.run(t.Context())
		time.Sleep(checkTimeout - time.Millisecond)
		b.expect(t, "before its time-out", "", "")
		time.Sleep(time.Millisecond)
		b.expect(t, "after its time-out", "no answer within 10s", "WARN sink is not reachable")
		time.Sleep(11 * time.Second) // the second check runs
		began := time.Now()
		stop()
		if took := time.Since(began); took != 0 {
			t.Errorf("it ran on for %s", took)
		}
		b.expect(t, "the session has ended it", "no answer within 10s", "")
	})
}

// While a breaker is not closed, checks go on although the sink has accepted something in this session.
func TestCheckAsksForOpenBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newCheckBench()
		b.finds(nil, errNotThere)
		b.breaker.lanes = []*lane{}
		defer b.breaker.close()
		b.state.answered(answer{counts: monitoring.Counts{Delivered: 1}})
		b.breaker.judge(verdict{away: 1, news: true})
		b.state.answered(answer{counts: monitoring.Counts{Failed: 1}, cause: errors.New("dial")})
		b.logged()
		stop := b.run(t.Context())
		defer stop()
		b.expect(t, "away", "left alone since", "")
		b.finds(nil, nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if b.state.status().Breaker == "open" {
			t.Error("a check has found the destination, and the breaker is open")
		}
	})
}

// Which topics of a sink can be named before there is an event, and whether there is only one.
func TestTopicsThatAreChecked(t *testing.T) {
	t.Parallel()
	template := func(s string) router.Template {
		tpl, err := router.ParseTopic(s)
		if err != nil {
			t.Fatal(err)
		}
		return tpl
	}
	route := func(topic string, sinks ...string) Route {
		r := Route{Sinks: sinks}
		if topic != "" {
			tpl := template(topic)
			r.Topic = &tpl
		}
		return r
	}
	for name, test := range map[string]struct {
		topic  string
		routes []Route
		want   []string
		only   bool
	}{
		"no routes":                   {topic: "all", want: []string{"all"}, only: true},
		"no topic":                    {},
		"a field":                     {topic: "all.{aggregate_type}"},
		"a route without a topic":     {topic: "all", routes: []Route{route("", "s")}, want: []string{"all"}, only: true},
		"a route to another":          {topic: "all", routes: []Route{route("", "s"), route("x", "other")}, want: []string{"all"}, only: true},
		"a route in place of its own": {topic: "all", routes: []Route{route("x", "s", "other")}, want: []string{"x"}, only: true},
		"several, some of them twice": {topic: "all", routes: []Route{route("x", "s"), route("", "s"), route("x", "s"), route("y", "s")}, want: []string{"x", "all", "y"}},
		"one, and a field":            {topic: "{event_type}", routes: []Route{route("x", "s"), route("", "s")}, want: []string{"x"}},
	} {
		c := newConnector(Config{Sinks: []Sink{{Name: "s", Topic: template(test.topic)}}, Routes: test.routes, Health: &monitoring.Health{}}, nil)
		k := c.newSinkCheck(c.cfg.Sinks[0], checkable{})
		if diff := cmp.Diff(test.want, k.topics); diff != "" || k.only != test.only {
			t.Errorf("%s: only one: %t (-want +got):\n%s", name, k.only, diff)
		}
	}
}

// A check that hangs delays no event, and does not delay the end of the session.
func TestCheckBesideSession(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	var hanging atomic.Bool
	open := b.cfg.Sinks[0].Open
	b.cfg.Sinks[0].Open = func() (sinks.Sink, error) {
		s, err := open()
		return checkable{s.(fakeSink), func(ctx context.Context, _ []string) ([]sinks.TopicCheck, error) {
			hanging.Store(true)
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}}, err
	}
	r := b.run()
	b.waitFor("the sink is checked", hanging.Load)
	b.event("x", "a")
	b.waitFor("the event has arrived", func() bool { return b.received() == "a" })
	began := time.Now()
	r.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the session ended after %s", took)
	}
}

// A sink that does not exist is known before the first event.
func TestSinkAwayBeforeFirstEvent(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.cfg.Sinks[0].Open = func() (sinks.Sink, error) {
		return checkable{check: func(context.Context, []string) ([]sinks.TopicCheck, error) {
			return nil, errors.New("connection refused")
		}}, nil
	}
	r := b.run()
	b.waitFor("the sink is degraded", func() bool {
		c, shown := r.health.Report().Components["sink:s"]
		return shown && c.Status == monitoring.LevelDegraded && strings.Contains(c.Detail, "connection refused")
	})
	if st := r.connector.Status().Sinks[0]; st.Check.Unreachable != "connection refused" || st.Check.Since.IsZero() || st.Failing {
		t.Errorf("Status says %+v", st)
	}
	r.stop()
}
