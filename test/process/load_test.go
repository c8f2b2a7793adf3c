//go:build linux

package process

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	calls := 0
	err := Pace(t.Context(), 2000, 200, func(i int) error {
		if i != calls {
			t.Errorf("call %d has number %d", calls, i)
		}
		calls++
		return nil
	})
	if took := time.Since(begin); err != nil || calls != 200 || took < 99*time.Millisecond {
		t.Errorf("%d calls in %v, error %v", calls, took, err)
	}
}

func TestPaceEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	if err := Pace(ctx, 100_000, 1000, func(int) error { calls++; cancel(); return nil }); err != nil || calls != 1 {
		t.Errorf("%d calls after ctx has ended, error %v", calls, err)
	}
	broken := errors.New("broken")
	if err := Pace(t.Context(), 100_000, 1000, func(int) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int{"": 0, "a": 1, "a,b c": 3, " a , b ": 2} {
		if got := List(value); len(got) != want {
			t.Errorf("%q: %q, want %d", value, got, want)
		}
	}
}

func TestCPUTime(t *testing.T) {
	t.Parallel()
	before, err := CPUTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if now, err := CPUTime(os.Getpid()); err != nil {
			t.Fatal(err)
		} else if now > before+5*time.Millisecond {
			return
		}
	}
	t.Error("a busy process uses no CPU")
}
