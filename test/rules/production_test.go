package rules

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// development is what the demo and the tests are made of. None of it may be linked into the program that runs in production.
var development = []string{
	module + "/internal/demo", module + "/internal/servers", module + "/internal/pgtest",
	"github.com/alicebob/miniredis/v2", "github.com/fergusstrange/embedded-postgres", "github.com/lib/pq",
	"github.com/nats-io/nats-server/v2/server", "github.com/twmb/franz-go/pkg/kfake", "testing",
}

// TestProductionIsLean lists what is linked into each command.
func TestProductionIsLean(t *testing.T) {
	t.Parallel()
	production, demo := dependencies(t, "./cmd/outbox-cdc"), dependencies(t, "./cmd/outbox-demo")
	for _, pkg := range development {
		if slices.Contains(production, pkg) {
			t.Errorf("cmd/outbox-cdc links %s: its servers are for development", pkg)
		}
	}
	for _, pkg := range []string{module + "/internal/demo", "github.com/twmb/franz-go/pkg/kfake", module + "/service"} {
		if !slices.Contains(demo, pkg) {
			t.Errorf("cmd/outbox-demo does not link %s: is it still written as here?", pkg)
		}
	}
}

func dependencies(t *testing.T, pkg string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", pkg)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}
