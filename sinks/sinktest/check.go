package sinktest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	checkTimeout = 10 * time.Second // for a Check whose destination answers
	checkBack    = 30 * time.Second // how soon a Check must succeed after the destination is back
	manyChecks   = 30               // how many checks the rule about goroutines makes
)

// checkRules are the rules of sinks.Checker. A sink that is no Checker skips them.
var checkRules = []rule{
	{"check: all is there", checkAllThere},
	{"check: away", checkAway},
	{"check: hang", checkHang},
	{"check: missing topic", checkMissingTopic},
	{"check: refused login", checkRefusedLogin},
	{"check: context ended", checkContextEnded},
	{"check: beside Deliver", checkBesideDeliver},
	{"check: leaves nothing running", checkLeavesNothing},
}

// checker returns the sink as a Checker, and skips the rule if it is none.
func checker(t testing.TB, h *Harness) sinks.Checker {
	t.Helper()
	c, ok := h.Sink.(sinks.Checker)
	if !ok {
		t.Skip("the sink is no Checker")
	}
	return c
}

// check calls Check, and checks the rules that hold for every call.
func check(ctx context.Context, t testing.TB, c sinks.Checker, topics ...string) ([]sinks.TopicCheck, error) {
	t.Helper()
	given := slices.Clone(topics)
	found, err := c.Check(ctx, topics)
	if !slices.Equal(given, topics) {
		t.Errorf("Check has changed the topics that it was given: %q", topics)
	}
	if err != nil {
		return found, err
	}
	if len(found) != len(topics) {
		t.Errorf("%d results for %d topics", len(found), len(topics))
		return nil, errors.New("the number of results is wrong")
	}
	for i, f := range found {
		switch {
		case f.Topic != topics[i]:
			t.Errorf("result %d: want topic %q, got %q", i, topics[i], f.Topic)
		case f.Kind == "":
			t.Errorf("topic %q: the destination has a word for it, which Kind lacks", f.Topic)
		case f.Err == nil && f.Remedy != "":
			t.Errorf("topic %q is there, and has the remedy %q", f.Topic, f.Remedy)
		case strings.ContainsAny(f.Remedy, "\r\n"):
			t.Errorf("topic %q: the remedy %q is not one line", f.Topic, f.Remedy)
		}
	}
	return found, nil
}

// mustCheck checks topics, all of which must be there.
func mustCheck(t testing.TB, c sinks.Checker, topics ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), checkTimeout)
	defer cancel()
	found, err := check(ctx, t, c, topics...)
	if err != nil {
		t.Errorf("the destination answers: %v", err)
	}
	for _, f := range found {
		if f.Err != nil {
			t.Errorf("%s %q is there: %v", f.Kind, f.Topic, f.Err)
		}
	}
}

// checkUntilBack checks topics until all are there.
func checkUntilBack(t testing.TB, h *Harness, topics ...string) {
	t.Helper()
	c := checker(t, h)
	giveUp := time.Now().Add(cmp.Or(h.awayWithin, checkBack))
	for {
		ctx, cancel := context.WithTimeout(t.Context(), checkTimeout)
		found, err := check(ctx, t, c, topics...)
		cancel()
		for _, f := range found {
			err = cmp.Or(err, f.Err)
		}
		switch {
		case err == nil:
			return
		case time.Now().After(giveUp):
			t.Fatalf("it is back, and Check says: %v", err)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.Context().Done():
			return
		}
	}
}

// checkAllThere: a check finds what is there, and sends nothing.
func checkAllThere(t testing.TB, h *Harness) {
	c := checker(t, h)
	mustCheck(t, c)
	mustCheck(t, c, h.Topic)
	mustCheck(t, c, h.Topic)
	expect(t, h, nil, once)
	batch := interleaved(h, 2, "a", "b")
	mustDeliver(t.Context(), t, h, batch)
	mustCheck(t, c, h.Topic)
	expect(t, h, batch, once)
}

// checkAway: a check finds a destination away that refuses connections, without waiting for the end of its context, and the
// destination is checked anew each time.
func checkAway(t testing.TB, h *Harness) {
	c := checker(t, h)
	if h.Away == nil {
		t.Skip("the harness has no means")
	}
	mustCheck(t, c, h.Topic)
	back := h.Away()
	ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(h.awayWithin, awayWithin))
	defer cancel()
	if _, err := check(ctx, t, c, h.Topic); err == nil {
		t.Error("the destination refuses connections, and Check says that it can be used")
	} else if sinks.IsRefusedLogin(err) {
		t.Errorf("the destination refuses connections, and Check says that it refuses the login: %v", err)
	}
	if ctx.Err() != nil {
		t.Error("a destination that refuses connections made Check last as long as its deadline")
	}
	back()
	checkUntilBack(t, h, h.Topic)
	batch := interleaved(h, 2, "a", "b")
	deliverAgain(t, h, batch)
	expect(t, h, batch, orRepeated)
}

// checkHang: a check returns when its context ends.
func checkHang(t testing.TB, h *Harness) {
	c := checker(t, h)
	if h.Hang == nil {
		t.Skip("the harness has no means")
	}
	back := h.Hang()
	const timeout = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	began := time.Now()
	if _, err := check(ctx, t, c, h.Topic); err == nil {
		t.Error("the destination does not answer, and Check says that it can be used")
	}
	if took := time.Since(began); took > timeout+lateness {
		t.Errorf("returned %v after its deadline", took-timeout)
	}
	back()
	checkUntilBack(t, h, h.Topic)
}

// checkMissingTopic: a check finds which of several topics is missing, and does not make it.
func checkMissingTopic(t testing.TB, h *Harness) {
	c := checker(t, h)
	if h.MissingTopic == nil {
		t.Skip("the harness has no means")
	}
	missing, create := h.MissingTopic()
	ctx, cancel := context.WithTimeout(t.Context(), 2*checkTimeout)
	defer cancel()
	for range 2 { // the second one would find what the first one has made
		found, err := check(ctx, t, c, h.Topic, missing)
		if err != nil {
			t.Fatalf("one topic of two is missing: want an error of this topic alone, got %v", err)
		}
		if found[0].Err != nil {
			t.Errorf("%s %q is there: %v", found[0].Kind, h.Topic, found[0].Err)
		}
		if found[1].Err == nil {
			t.Errorf("%s %q is missing, and Check says that it is there", found[1].Kind, missing)
		}
	}
	create()
	checkUntilBack(t, h, h.Topic, missing)
}

// checkRefusedLogin: a check says that it was the login that was refused.
func checkRefusedLogin(t testing.TB, h *Harness) {
	checker(t, h)
	if h.WrongLogin == nil {
		t.Skip("the harness has no means")
	}
	ctx, cancel := context.WithTimeout(t.Context(), checkTimeout)
	defer cancel()
	_, err := check(ctx, t, h.WrongLogin(), h.Topic)
	switch {
	case err == nil:
		t.Error("the login is wrong, and Check says that the destination can be used")
	case !sinks.IsRefusedLogin(err):
		t.Errorf("the login is wrong: want an error with RefusedLogin, got %v", err)
	}
}

// checkContextEnded: a check whose context has ended returns at once, with an error.
func checkContextEnded(t testing.TB, h *Harness) {
	c := checker(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if _, err := check(ctx, t, c, h.Topic); err == nil {
		t.Error("the context has ended: want an error")
	}
	if took := time.Since(began); took > lateness {
		t.Errorf("took %v", took)
	}
	mustCheck(t, c, h.Topic)
}

// checkBesideDeliver: lanes deliver while checks run.
func checkBesideDeliver(t testing.TB, h *Harness) {
	c := checker(t, h)
	all := interleaved(h, 40, "a", "b", "c")
	delivered, checked := make(chan struct{}), make(chan struct{})
	var checks sync.WaitGroup
	for range 2 {
		checks.Go(func() {
			for {
				mustCheck(t, c, h.Topic)
				select {
				case checked <- struct{}{}:
				case <-delivered:
					return
				}
			}
		})
	}
	for batch := range slices.Chunk(all, 7) {
		if errs := deliver(t.Context(), t, h, batch); errs != nil {
			t.Errorf("a check runs, and messages are not accepted: %v", errors.Join(errs...))
			break
		}
		<-checked
	}
	close(delivered)
	checks.Wait()
	expect(t, h, all, once)
}

// checkLeavesNothing: what a check has started ends with it, also if the destination did not answer. A sink may keep a
// connection, and what reads from it, until it is closed.
func checkLeavesNothing(t testing.TB, h *Harness) {
	c := checker(t, h)
	label := fmt.Sprintf("%s %p", t.Name(), h)
	// Goroutines that Check starts inherit the label. Other tests run at the same time, and have other labels.
	labelled := func(timeout time.Duration) {
		pprof.Do(t.Context(), pprof.Labels("checks of", label), func(ctx context.Context) {
			for range manyChecks {
				within, cancel := context.WithTimeout(ctx, timeout)
				_, _ = c.Check(within, []string{h.Topic}) // other rules look at what it returns
				cancel()
			}
		})
	}
	labelled(checkTimeout)
	if h.Hang != nil {
		back := h.Hang()
		labelled(20 * time.Millisecond)
		back()
	}
	giveUp := time.Now().Add(cmp.Or(h.awayWithin, checkBack))
	for running(label) >= manyChecks/2 {
		if time.Now().After(giveUp) {
			t.Fatalf("%d goroutines still run after %d checks", running(label), manyChecks)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
			return
		}
	}
}

// running counts the goroutines that have this label.
func running(label string) (n int) {
	var profile bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		panic(err) // cannot happen: a buffer takes everything
	}
	// The profile has a paragraph for each different stack and label: "3 @ 0x… 0x…", then "# labels: {…}", then the stack.
	for paragraph := range strings.SplitSeq(profile.String(), "\n\n") {
		if !strings.Contains(paragraph, fmt.Sprintf("%q", label)) {
			continue
		}
		for line := range strings.SplitSeq(paragraph, "\n") {
			var some int
			if _, err := fmt.Sscanf(line, "%d @", &some); err == nil {
				n += some
				break
			}
		}
	}
	return n
}
