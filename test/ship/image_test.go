package ship

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// Upper bounds: sizes in bytes, and the time from start to ready.
const (
	mostBinary     = 40_000_000
	mostCompressed = 14_000_000
	mostImage      = 42_000_000
	longestStart   = 300 * time.Millisecond
)

// The files of the image say what the documents promise of it. This needs no engine.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	text := readFile(t, "deploy/image/Dockerfile")
	for _, want := range []string{
		"\nFROM scratch\n", "\nUSER 65532:65532\n", "ca-certificates.crt", "\nENV OUTBOX_CONFIG=/etc/outbox-cdc/outbox.yaml\n",
		`CMD ["/usr/bin/outbox-cdc", "health", "--live"]`, `ENTRYPOINT ["/usr/bin/outbox-cdc"]`, "org.opencontainers.image.licenses",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("deploy/image/Dockerfile has no %q", want)
		}
	}
	if demo := readFile(t, "deploy/image/Dockerfile.demo"); !strings.Contains(demo, "\nUSER postgres\n") {
		t.Error("the demo's image does not run as PostgreSQL's user, which is not root")
	}
}

// build builds outbox-cdc as a release does, and returns its path.
func build(t *testing.T, arch string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "outbox-cdc")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./cmd/outbox-cdc")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build for %s: %v\n%s", arch, err, out)
	}
	return path
}

func TestBinarySize(t *testing.T) {
	t.Parallel()
	needsLong(t)
	for _, arch := range []string{"amd64", "arm64"} {
		data, err := os.ReadFile(build(t, arch))
		if err != nil {
			t.Fatal(err)
		}
		var small bytes.Buffer
		w := gzip.NewWriter(&small)
		if _, err := w.Write(data); err != nil || w.Close() != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f MB, compressed %.1f MB", arch, float64(len(data))/1e6, float64(small.Len())/1e6)
		if len(data) > mostBinary || small.Len() > mostCompressed {
			t.Errorf("%s: %d bytes, compressed %d; at most %d and %d", arch, len(data), small.Len(), mostBinary, mostCompressed)
		}
	}
}

// images builds images by buildah, which needs no daemon, with a storage of its own.
type images struct {
	t       *testing.T
	context string
	store   []string
}

func newImages(t *testing.T) *images {
	t.Helper()
	needsLong(t)
	if _, err := exec.LookPath("buildah"); err != nil || os.Geteuid() != 0 {
		t.Skip("it needs buildah, and to be root: apt-get install buildah")
	}
	dir := t.TempDir()
	i := &images{t: t, context: filepath.Join(dir, "context"), store: []string{
		"--storage-driver", "vfs", "--root", filepath.Join(dir, "store"), "--runroot", filepath.Join(dir, "run"),
	}}
	t.Cleanup(func() {
		out, err := exec.Command("buildah", append(slices.Clone(i.store), "rm", "--all")...).CombinedOutput()
		if err != nil {
			t.Errorf("buildah rm: %v\n%s", err, out)
		}
	})
	for _, arch := range []string{"amd64", "arm64"} {
		i.put(build(t, arch), "linux/"+arch+"/outbox-cdc", 0o755)
	}
	i.put("/etc/ssl/certs/ca-certificates.crt", "ca-certificates.crt", 0o644)
	return i
}

func (i *images) put(from, to string, mode os.FileMode) {
	i.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		i.t.Fatal(err)
	}
	to = filepath.Join(i.context, to)
	if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, mode)); err != nil {
		i.t.Fatal(err)
	}
}

func (i *images) command(args ...string) *exec.Cmd {
	return exec.CommandContext(i.t.Context(), "buildah", append(slices.Clone(i.store), args...)...)
}

func (i *images) buildah(args ...string) string {
	i.t.Helper()
	out, err := i.command(args...).CombinedOutput()
	if err != nil {
		i.t.Fatalf("buildah %s: %v\n%s", args[0], err, out)
	}
	return strings.TrimSpace(string(out))
}

func (i *images) make(arch string) (image string) {
	i.t.Helper()
	i.buildah("build", "--isolation", "chroot", "--format", "docker", "-f", root+"/deploy/image/Dockerfile", "--platform", "linux/"+arch,
		"--build-arg", "FROM=given", "--build-arg", "TARGETPLATFORM=linux/"+arch, "--build-arg", "VERSION=v0.0.0-test", "-t", "outbox-cdc:"+arch,
		i.context)
	return "outbox-cdc:" + arch
}

func TestImage(t *testing.T) {
	t.Parallel()
	i := newImages(t)
	for _, arch := range []string{"arm64", "amd64"} {
		var about struct {
			Docker struct {
				Architecture string `json:"architecture"`
				Config       struct {
					User        string
					Entrypoint  []string
					Cmd         []string
					Env         []string
					Labels      map[string]string
					Healthcheck struct{ Test []string }
				} `json:"config"`
			}
		}
		if err := json.Unmarshal([]byte(i.buildah("inspect", "--type", "image", i.make(arch))), &about); err != nil {
			t.Fatal(err)
		}
		c := about.Docker.Config
		if about.Docker.Architecture != arch || c.User != "65532:65532" || strings.Join(c.Entrypoint, " ") != "/usr/bin/outbox-cdc" ||
			strings.Join(c.Cmd, " ") != "run" || strings.Join(c.Healthcheck.Test, " ") != "CMD /usr/bin/outbox-cdc health --live" ||
			c.Labels["org.opencontainers.image.version"] != "v0.0.0-test" || !slices.Contains(c.Env, "OUTBOX_CONFIG=/etc/outbox-cdc/outbox.yaml") {
			t.Errorf("%s: %+v", arch, about.Docker)
		}
	}
	container := i.buildah("from", "outbox-cdc:amd64")
	i.hasOnly(i.buildah("mount", container), []string{"/usr/bin/outbox-cdc", "/etc/ssl/certs/ca-certificates.crt"})

	// Without a configuration.
	code, out := i.run(container, nil, "run")
	if code != 78 || !strings.Contains(out, "/etc/outbox-cdc/outbox.yaml: cannot be read: no such file or directory; OUTBOX_CONFIG names it") {
		t.Errorf("without a configuration: exit code %d: %s", code, out)
	}

	// With one that only root may read, which the user of the image is not.
	dir := t.TempDir()
	config := filepath.Join(dir, "outbox.yaml")
	postgres, listen := startPostgres(t), freeAddress(t)
	write(t, config, configuration(postgres, listen), 0o600)
	mounted := []string{"-v", config + ":/etc/outbox-cdc/outbox.yaml:ro"}
	if code, out := i.run(container, mounted, "run"); code != 78 || !strings.Contains(out, "permission denied") {
		t.Errorf("with root's configuration: exit code %d: %s", code, out)
	}

	// With one that it may read, as the healthcheck sees it.
	if err := os.Chmod(config, 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out := i.run(container, mounted, "health", "--live"); code != 1 || !strings.Contains(out, "no instance answers at") {
		t.Errorf("health before the start: exit code %d: %s", code, out)
	}
	running := i.command(i.args(container, mounted, "run", "--init")...)
	var log bytes.Buffer
	running.Stderr = &log
	events, err := running.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the healthcheck passes", func() bool { code, _ := i.run(container, mounted, "health", "--strict"); return code == 0 })
	insert(t, postgres)
	line := make([]byte, 4096)
	n, err := events.Read(line)
	if err != nil || !strings.Contains(string(line[:n]), "order.created") {
		t.Errorf("the event: %q, %v\n%s", line[:n], err, log.String())
	}
	// buildah does not hand on SIGTERM, as engines do: it kills.
	if err := syscall.Kill(pidOf(t, listen), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, events)
	if err := running.Wait(); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, log.String())
	}
}

// hasOnly checks that these files, and no other one with content, are below a directory, and how large they are together.
func (i *images) hasOnly(dir string, want []string) {
	i.t.Helper()
	var found []string
	var size int64
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			found = append(found, strings.TrimPrefix(path, dir))
			size += info.Size()
		}
		return err
	})
	slices.Sort(want)
	if slices.Sort(found); err != nil || !slices.Equal(found, want) || size > mostImage {
		i.t.Errorf("%d bytes in %q, want at most %d in %q (%v)", size, found, mostImage, want, err)
	}
	i.t.Logf("image: %.1f MB", float64(size)/1e6)
}

// args is a command line of buildah that runs outbox-cdc in a container, in the network of this host.
func (i *images) args(container string, options []string, args ...string) []string {
	all := append([]string{"run", "--isolation", "chroot"}, options...)
	return append(append(all, container, "--", "/usr/bin/outbox-cdc"), args...)
}

func (i *images) run(container string, options []string, args ...string) (code int, out string) {
	i.t.Helper()
	// On a busy machine buildah sometimes ends before it has handed on what the program wrote last.
	for range 10 {
		code = 0
		text, err := i.command(i.args(container, options, args...)...).CombinedOutput()
		exit, exited := errors.AsType[*exec.ExitError](err)
		switch {
		case exited:
			code = exit.ExitCode() // buildah's is that of the program
		case err != nil:
			i.t.Fatal(err)
		}
		out = buildahSays.ReplaceAllString(string(text), "")
		if code == 0 || out != "" {
			break
		}
	}
	return code, out
}

// buildahSays is what buildah adds to what a program has written.
var buildahSays = regexp.MustCompile(`(?m)^(subprocess exited with status \d+|Error: exit status \d+)\n?`)

// pidOf asks an instance for its process.
func pidOf(t *testing.T, listen string) int {
	t.Helper()
	response, err := http.Get("http://" + listen + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var status struct {
		Instance struct {
			PID int `json:"pid"`
		} `json:"instance"`
	}
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil || status.Instance.PID < 2 {
		t.Fatalf("/status: %+v, %v", status, err)
	}
	return status.Instance.PID
}

func startPostgres(t *testing.T) *servers.Postgres {
	t.Helper()
	p, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{Settings: servers.NoSync()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + strconv.Itoa(port)
}

func configuration(p *servers.Postgres, listen string) string {
	return "source: {dsn: '" + p.DSN("postgres") + "'}\nsinks: [{name: out, type: stdout}]\nhttp: {listen: '" + listen + "'}\n"
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func insert(t *testing.T, p *servers.Postgres) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
		values ('order', '42', 'order.created', '{}')`); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("a minute passes before %s", what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// A start after a clean stop is ready at once: it waits neither for a lease nor for a predecessor.
func TestStart(t *testing.T) {
	t.Parallel()
	needsLong(t)
	binary, postgres, listen := build(t, runtime.GOARCH), startPostgres(t), freeAddress(t)
	config := filepath.Join(t.TempDir(), "outbox.yaml")
	write(t, config, configuration(postgres, listen), 0o600)
	var took []time.Duration
	for range 6 {
		cmd := exec.CommandContext(t.Context(), binary, "run", "--init", "--config", config)
		if len(took) > 0 {
			cmd = exec.CommandContext(t.Context(), binary, "run", "--config", config)
		}
		var log bytes.Buffer
		cmd.Stderr = &log
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for ready := false; !ready; {
			if response, err := http.Get("http://" + listen + "/readyz"); err == nil {
				response.Body.Close()
				ready = response.StatusCode == http.StatusOK
			}
			if time.Since(begin) > time.Minute {
				t.Fatalf("it is not ready:\n%s", log.String())
			}
			<-time.After(time.Millisecond)
		}
		took = append(took, time.Since(begin))
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("SIGTERM: %v\n%s", err, log.String())
		}
	}
	again := slices.Sorted(slices.Values(took[1:]))
	t.Logf("the first start, with init: %s; later ones: %s", took[0], again)
	if median := again[len(again)/2]; median > longestStart {
		t.Errorf("from start to ready: %s, at most %s", median, longestStart)
	}
}
