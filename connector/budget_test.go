package connector

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// budgetBench is a budget with two lanes, and what it has told.
type budgetBench struct {
	*budget
	seen []bool
}

func newBudgetBench() *budgetBench {
	b := &budgetBench{}
	b.budget = newBudget(func(suspect bool) { b.seen = append(b.seen, suspect) })
	b.attach([]*lane{newLane(&sharedSink{}, 0, rowSource{}, nil), newLane(&sharedSink{}, 1, rowSource{}, nil)})
	return b
}

// die asks for n deaths, and returns how many were granted.
func (b *budgetBench) die(n int) (granted int) {
	for range n {
		if b.mayDie() {
			granted++
		}
	}
	return granted
}

// Five messages die, and then none before one was accepted, which gives the whole budget back.
func TestBudgetCountsDeaths(t *testing.T) {
	t.Parallel()
	b := newBudgetBench()
	if n := b.die(4); n != 4 || b.suspect() {
		t.Errorf("%d of 4 died, suspect: %t", n, b.suspect())
	}
	b.accepted()
	b.die(2)
	b.attach(b.lanes) // the budget outlives the session
	if n := b.die(9); n != deathBudget-2 || !b.suspect() {
		t.Errorf("2 and %d of 9 died, suspect: %t; want %d", n, b.suspect(), deathBudget)
	}
	for i, l := range b.lanes {
		select {
		case <-l.asked:
			t.Errorf("lane %d was woken too soon", i)
		default:
		}
	}
	b.accepted()
	b.accepted()
	for i, l := range b.lanes {
		select {
		case <-l.asked:
		default:
			t.Errorf("lane %d was not woken: its due rows need not wait any longer", i)
		}
	}
	if n := b.die(9); n != deathBudget {
		t.Errorf("%d of 9 died after an acceptance, want %d", n, deathBudget)
	}
	if want := []bool{true, false, true}; !slices.Equal(b.seen, want) {
		t.Errorf("suspect: %v, want %v", b.seen, want)
	}
}

// Due rows of a suspect sink are tried 40 times a second, by all lanes together.
func TestBudgetPacesDueRows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBudgetBench()
		if !b.take(500, time.Now()) || !b.dueAt().IsZero() {
			t.Error("a sink that is not suspect is tried as fast as it can be")
		}
		b.die(deathBudget)
		if !b.take(suspectRate, time.Now()) || b.take(1, time.Now()) {
			t.Error("want one call, and no other at once")
		}
		if wait := time.Until(b.dueAt()); wait != time.Second {
			t.Errorf("the next call may begin in %s, want 1s", wait)
		}
		time.Sleep(time.Second)
		b.count(suspectRate/2, time.Now()) // as probes do
		if wait := time.Until(b.dueAt()); wait != time.Second/2 || b.take(1, time.Now()) {
			t.Errorf("the next call may begin in %s, want 500ms", wait)
		}
		b.accepted()
		if !b.take(500, time.Now()) || !b.dueAt().IsZero() {
			t.Error("after an acceptance nothing waits")
		}
	})
}
