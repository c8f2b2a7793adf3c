package compose

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

const file = "../../../deploy/compose/compose.yaml"

// load reads the file as "docker compose config" does: with its schema, references, extensions and checks of consistency.
func load(t *testing.T, env ...string) *types.Project {
	t.Helper()
	o, err := cli.NewProjectOptions([]string{file}, cli.WithEnv(env), cli.WithResolvedPaths(true), cli.WithConsistency(true), cli.WithDefaultProfiles())
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestServices: each service of the demonstration is there, with an image of a fixed version.
func TestServices(t *testing.T) {
	p := load(t)
	want := []string{"grafana", "init", "kafka", "outbox-cdc", "outbox-cdc-2", "postgres", "prometheus", "redis", "shop", "topics"}
	if got := p.ServiceNames(); !slices.Equal(got, want) {
		t.Errorf("the services are %v, not %v", got, want)
	}
	for name, s := range p.Services {
		_, tag, ok := strings.Cut(s.Image[strings.LastIndex(s.Image, "/")+1:], ":")
		if !ok || tag == "latest" || !strings.ContainsAny(tag, ".") {
			t.Errorf("%s: the image %s has no fixed version", name, s.Image)
		}
	}
	if got := load(t, "OUTBOX_CDC_VERSION=9.8.7").Services["outbox-cdc"].Image; !strings.HasSuffix(got, ":9.8.7") {
		t.Errorf("OUTBOX_CDC_VERSION makes %s", got)
	}
}

// TestPortsAreLocal: nobody else than this machine reaches a port.
func TestPortsAreLocal(t *testing.T) {
	for name, s := range load(t).Services {
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: the port %s is open on %q", name, port.Published, port.HostIP)
			}
		}
	}
}

// TestOrder: each service waits for what it needs, in the state in which it can be used.
func TestOrder(t *testing.T) {
	const healthy, done = types.ServiceConditionHealthy, types.ServiceConditionCompletedSuccessfully
	p := load(t)
	for name, want := range map[string]map[string]string{
		"init":         {"postgres": healthy},
		"topics":       {"kafka": healthy},
		"shop":         {"init": done},
		"outbox-cdc":   {"init": done, "topics": done, "redis": healthy},
		"outbox-cdc-2": {"init": done, "topics": done, "redis": healthy},
		"grafana":      {"prometheus": healthy},
	} {
		got := p.Services[name].DependsOn
		if len(got) != len(want) {
			t.Errorf("%s waits for %v", name, got)
		}
		for service, condition := range want {
			if got[service].Condition != condition {
				t.Errorf("%s waits until %s is %q, not %q", name, service, got[service].Condition, condition)
			}
			if hc := p.Services[service].HealthCheck; condition == healthy && (hc == nil || len(hc.Test) == 0) {
				t.Errorf("%s waits for the health of %s, which has no check", name, service)
			}
			if condition == done && p.Services[service].Restart != "" {
				t.Errorf("%s waits for the end of %s, which restarts", name, service)
			}
		}
	}
}

// TestMounts: what is mounted is in the repository, and cannot be written.
func TestMounts(t *testing.T) {
	for name, s := range load(t).Services {
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !v.ReadOnly {
				t.Errorf("%s: %s can be written", name, filepath.Base(v.Source))
			}
		}
	}
}

// TestConnectorIsConfined: it gets no more rights than in production.
func TestConnectorIsConfined(t *testing.T) {
	for _, name := range []string{"init", "outbox-cdc", "outbox-cdc-2"} {
		s := load(t).Services[name]
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || s.Privileged {
			t.Errorf("%s: %v %v %v", name, s.ReadOnly, s.CapDrop, s.Privileged)
		}
	}
}
