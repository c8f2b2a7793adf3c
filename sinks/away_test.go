package sinks

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestAwayDoubles(t *testing.T) {
	t.Parallel()
	var a Away[string]
	now := time.Unix(0, 0)
	if a.Wait("orders", now) != 0 {
		t.Error("a topic that nobody has asked is away")
	}
	var waits []time.Duration
	for range 7 {
		a.Found("orders", now)
		a.Found("orders", now) // by another lane
		waits = append(waits, a.Wait("orders", now))
		now = now.Add(a.Wait("orders", now))
	}
	second := time.Second
	if want := []time.Duration{second, 2 * second, 4 * second, 8 * second, 16 * second, 30 * second, 30 * second}; !slices.Equal(waits, want) {
		t.Errorf("waits %v, want %v", waits, want)
	}
	if a.Wait("orders", now) != 0 || a.Wait("invoices", now) != 0 {
		t.Error("it must be asked when its time has come, and others always")
	}
	if rested, known := a.Known("orders"); !known || rested != 30*second {
		t.Errorf("known %t, rested %s, want 30s", known, rested)
	}
	a.Found("orders", now)
	a.AskNow()
	if a.Wait("orders", now) != 0 {
		t.Error("a person wants to know, and it is not asked")
	}
	if a.Found("orders", now); a.Wait("orders", now) != LongestAway {
		t.Errorf("it is still away, and is asked again in %s", a.Wait("orders", now))
	}
	a.Answered("orders")
	if _, known := a.Known("orders"); known {
		t.Error("a topic that has answered is away")
	}
	a.Found("orders", now)
	if wait := a.Wait("orders", now); wait != second {
		t.Errorf("after an answer it is asked again after %s, want 1s", wait)
	}
}

// TestAwayIsAskedByOne: of a topic that was found away, one message asks whether it is back, and others wait for what comes of it.
func TestAwayIsAskedByOne(t *testing.T) {
	t.Parallel()
	var a Away[string]
	now := time.Unix(0, 0)
	deadline := func() time.Time { return now.Add(time.Minute) }
	expect := func(when string, want time.Duration) {
		t.Helper()
		if wait := a.Ask("orders", now, deadline()); wait != want {
			t.Errorf("%s: %s, want %s", when, wait, want)
		}
	}
	expect("not known", 0)
	expect("not known, another lane", 0)
	a.Found("orders", now)
	a.Found("orders", now)
	expect("away", firstAway)
	now = now.Add(firstAway)
	expect("its time has come", 0)
	expect("it is being asked", firstAway)
	if wait := a.Wait("invoices", now) + a.Ask("invoices", now, deadline()); wait != 0 {
		t.Errorf("another topic waits %s", wait)
	}
	now = now.Add(10 * time.Second)
	expect("it is being asked for 10 s", 10*time.Second)
	a.Found("orders", now)
	expect("found away again", 2*firstAway)
	now = now.Add(2 * firstAway)
	expect("its time has come again", 0)
	now = deadline()
	expect("whoever asked has not said what came of it", 0)
	a.Answered("orders")
	expect("it is back", 0)
	expect("it is back, another lane", 0)
}

func TestAwayIsBounded(t *testing.T) {
	t.Parallel()
	var a Away[int]
	now := time.Unix(0, 0)
	for n := range maxAway + 1 {
		a.Found(n, now)
	}
	if len(a.topics) != maxAway || a.Wait(maxAway, now) != 0 {
		t.Errorf("%d topics are remembered, want %d", len(a.topics), maxAway)
	}
	now = now.Add(firstAway)
	if a.Found(-1, now); len(a.topics) != 1 || a.Wait(-1, now) != firstAway {
		t.Errorf("%d topics are remembered, want only the one whose time has not come", len(a.topics))
	}
}

func TestPutOffIsNoTry(t *testing.T) {
	t.Parallel()
	if err := PutOff(time.Second); !errors.Is(err, ErrNotAttempted) || RetryAfter(err) != time.Second {
		t.Errorf("%v, after %s", err, RetryAfter(err))
	}
}

func TestUncertain(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	for err, want := range map[error]bool{
		refused: false, ErrPermanent: false, ErrNotAttempted: false, PutOff(time.Second): false, ErrUnavailable: true, ErrTopicUnavailable: true,
	} {
		if IsUncertain(err) != want || !IsUncertain(Uncertain(err)) || !errors.Is(Uncertain(err), err) {
			t.Errorf("%v: uncertain %t", err, IsUncertain(err))
		}
	}
	if err := Uncertain(After(time.Minute, refused)); RetryAfter(err) != time.Minute || err.Error() != "refused" {
		t.Errorf("%v, after %s", err, RetryAfter(err))
	}
}
