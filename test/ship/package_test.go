//go:build linux

package ship

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestInstallPage: the way to the first event has six commands at most, and names files of the package.
func TestInstallPage(t *testing.T) {
	t.Parallel()
	commands := installCommands(t)
	if len(commands) > 6 || !strings.HasPrefix(commands[0], "apt install ./") {
		t.Errorf("%d commands: %q", len(commands), commands)
	}
	if !strings.Contains(readFile(t, ".goreleaser.yaml"), "dst: /etc/outbox-cdc/outbox.yaml\n        type: config|noreplace") {
		t.Error("the package's configuration is not one that an upgrade keeps")
	}
}

// installCommands are the lines of the first block of the page.
func installCommands(t *testing.T) []string {
	t.Helper()
	m := regexp.MustCompile("(?s)```sh\n(.*?)\n```").FindStringSubmatch(readFile(t, "docs/install.md"))
	if m == nil {
		t.Fatal("docs/install.md has no commands")
	}
	return strings.Split(m[1], "\n")
}

// TestSandbox: systemd's own judgement of the units, from 0 for safe to 10.
func TestSandbox(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	for _, unit := range []string{"outbox-cdc.service", "outbox-cdc@.service"} {
		text, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager",
			root+"/deploy/systemd/"+unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s: its exposure is above 2.0, or %v:\n%s", unit, err, text)
		}
	}
}

// TestPackage installs the deb of dist, which make snapshot has made, in a root of its own: the commands of the page from the package to
// the first event, an upgrade that keeps what a person has changed, removal and purge.
func TestPackage(t *testing.T) {
	needsLong(t)
	if os.Getuid() != 0 {
		t.Skip("it needs root, to make a root of its own")
	}
	debs, err := filepath.Glob(root + "/dist/*_amd64.deb")
	if err != nil || len(debs) != 1 {
		t.Fatalf("dist has %d packages for amd64: make snapshot", len(debs))
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		text, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, text)
		}
		return string(text)
	}
	commands := installCommands(t)
	run("cp", debs[0], filepath.Join(dir, filepath.Base(strings.TrimPrefix(commands[0], "apt install "))))
	run("cp", "testdata/systemctl", "testdata/first-event", dir)
	run("go", "build", "-C", root, "-o", filepath.Join(dir, "kafkafake"), "./internal/servers/cmd/kafkafake")
	if err := os.WriteFile(filepath.Join(dir, "commands"), []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "testdata/inroot", dir)
	cmd.Stdin = strings.NewReader("exec bash -eu /ship/first-event\n")
	text, err := cmd.CombinedOutput()
	t.Logf("%s", text)
	if err != nil || !strings.Contains(string(text), "\nALL DONE\n") {
		t.Errorf("%v", err)
	}
}
