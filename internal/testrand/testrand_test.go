package testrand

import (
	"fmt"
	"regexp"
	"testing"
)

// log is a test that notes what is logged.
type log struct {
	testing.TB
	text string
}

func (l *log) Logf(format string, args ...any) { l.text += fmt.Sprintf(format, args...) }

// The seed that is logged draws the same numbers. Not parallel: it sets the environment.
func TestSeedRepeats(t *testing.T) {
	t.Setenv(seedVariable, "")
	first := &log{TB: t}
	want := New(first).Uint64()
	if other := New(&log{TB: t}).Uint64(); other == want {
		t.Error("each run draws the same numbers")
	}
	m := regexp.MustCompile(`^OUTBOX_TEST_SEED=(\d+) `).FindStringSubmatch(first.text)
	if m == nil {
		t.Fatalf("the log says %q", first.text)
	}
	t.Setenv(seedVariable, m[1])
	if got := New(&log{TB: t}).Uint64(); got != want {
		t.Errorf("drew %d, want %d", got, want)
	}
}
