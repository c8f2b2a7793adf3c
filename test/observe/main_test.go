//go:build linux

package observe

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

var (
	full  = flag.Bool("full", false, "run the tests at their full length, 20 minutes, and those that a busy machine would fail")
	built = flag.String("binary", "", "the `path` of an outbox-cdc that is built already; else one is built")
	out   = flag.String("out", "", "a `directory` for what the panels show: answers.json, and a picture of it")
)

// binary is the connector that is tested. The first test that needs it builds it.
var binary struct {
	once   sync.Once
	remove func() error
	path   string
	err    error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binary.remove != nil {
		if err := binary.remove(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

func build(t testing.TB) string {
	t.Helper()
	binary.once.Do(func() {
		if binary.path = *built; binary.path != "" {
			return
		}
		var dir string
		if dir, binary.remove, binary.err = servers.TempDir("observe"); binary.err == nil {
			binary.path, binary.err = process.Build(context.Background(), filepath.Join("..", ".."), process.Product, dir)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

// fullOr is a duration of the full form, or that of the short form.
func fullOr(long, short time.Duration) time.Duration {
	if *full {
		return long
	}
	return short
}

// eventually tries until there is no error, and ends the test with the last one if that takes too long.
func eventually(t testing.TB, patience time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
	}
}

// passes waits, where the passing of time itself is the condition: an outage that lasts so long.
func passes(t testing.TB, d time.Duration) {
	t.Helper()
	if err := process.Pause(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}
