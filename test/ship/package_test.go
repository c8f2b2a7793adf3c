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

// TestInstallPage: the page has at most six commands from the package to the first event, and the package keeps a changed configuration.
func TestInstallPage(t *testing.T) {
	t.Parallel()
	commands := strings.Split(pageBlock(t, "apt install ./"), "\n")
	if len(commands) > 6 {
		t.Errorf("%d commands: %q", len(commands), commands)
	}
	if !strings.Contains(readFile(t, ".goreleaser.yaml"), "dst: /etc/outbox-cdc/outbox.yaml\n        type: config|noreplace") {
		t.Error("the package's configuration is not one that an upgrade keeps")
	}
}

// pageBlock returns the block of commands of docs/install.md that begins with begin.
func pageBlock(t *testing.T, begin string) string {
	t.Helper()
	m := regexp.MustCompile("(?s)```sh\n(" + regexp.QuoteMeta(begin) + ".*?)\n```").FindStringSubmatch(readFile(t, "docs/install.md"))
	if m == nil {
		t.Fatalf("docs/install.md has no commands that begin with %q", begin)
	}
	return m[1]
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
// the first event, which is read back from Kafka; then an upgrade and a downgrade while events arrive, a configuration that a person has
// changed, removal and purge.
func TestPackage(t *testing.T) {
	commands := pageBlock(t, "apt install ./")
	r := newRoot(t, "first-event")
	first, _, _ := strings.Cut(commands, "\n")
	r.put(artifact(t, "*_amd64.deb"), filepath.Base(strings.TrimPrefix(first, "apt install ")))
	r.text("commands", commands)
	r.text("look", pageBlock(t, "kafka-console-consumer.sh"))
	r.text("upgrade", pageBlock(t, "apt install -y -o"))
	r.build("kafka", "./test/ship/kafka")
	r.build("newer", "./cmd/outbox-cdc", "-ldflags=-s -w -X github.com/pyairtable-compose/outbox-cdc/internal/buildinfo.version=v99.0.0")
	r.run()
}

// artifact returns the one file of dist whose name matches the pattern. make snapshot has made it.
func artifact(t *testing.T, pattern string) string {
	t.Helper()
	needsLong(t)
	found, err := filepath.Glob(root + "/dist/" + pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("dist has %d files %s: make snapshot", len(found), pattern)
	}
	return found[0]
}

// An overlayRoot runs a script of testdata on this machine's files, with a layer above them that is gone afterwards.
type overlayRoot struct {
	t           *testing.T
	dir, script string
}

func newRoot(t *testing.T, script string) overlayRoot {
	t.Helper()
	needsLong(t)
	if os.Getuid() != 0 {
		t.Skip("it needs root, to make a root of its own")
	}
	r := overlayRoot{t: t, dir: t.TempDir(), script: script}
	r.put("testdata/systemctl", "systemctl")
	r.put("testdata/"+script, script)
	return r
}

func (r overlayRoot) put(file, name string) {
	r.t.Helper()
	r.command("cp", file, filepath.Join(r.dir, name))
}

func (r overlayRoot) text(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text+"\n"), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r overlayRoot) build(name, pkg string, flags ...string) {
	r.t.Helper()
	r.t.Setenv("CGO_ENABLED", "0")
	r.command("go", append(append([]string{"build", "-C", root, "-trimpath", "-o", filepath.Join(r.dir, name)}, flags...), pkg)...)
}

func (r overlayRoot) command(name string, args ...string) {
	r.t.Helper()
	if text, err := exec.CommandContext(r.t.Context(), name, args...).CombinedOutput(); err != nil {
		r.t.Fatalf("%s %q: %v\n%s", name, args, err, text)
	}
}

// run runs the script, which finds the files at /ship.
func (r overlayRoot) run() {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "testdata/inroot", r.dir)
	cmd.Stdin = strings.NewReader("exec bash -eu /ship/" + r.script + "\n")
	text, err := cmd.CombinedOutput()
	r.t.Logf("%s", text)
	if err != nil || !strings.Contains(string(text), "\nALL DONE\n") {
		r.t.Errorf("%v", err)
	}
}
