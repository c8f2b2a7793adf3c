package docs

import (
	"context"
	_ "embed"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

//go:embed prelude.sh
var prelude string

const patience = 3 * time.Minute // for a scene, on a busy machine

// outboxYAML is the configuration that the pages call outbox.yaml.
const outboxYAML = `
name: shop
source: {dsn: "${DATABASE_URL}"}
sinks:
  - {name: orders, type: kafka, brokers: ["${KAFKA}"]}
  - {name: partner, type: webhook, url: "${RECEIVER}", secret: a-long-secret, allow_hosts: [127.0.0.1]}
`

// built is the binary that all scenes run.
var built struct {
	once sync.Once
	path string
	err  error
}

func TestMain(m *testing.M) {
	code := pgtest.Main(m)
	if built.path != "" {
		if err := os.RemoveAll(filepath.Dir(built.path)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

func build() (path string, err error) {
	dir, err := os.MkdirTemp("", "outbox-docs-")
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "outbox-cdc")
	if out, err := exec.CommandContext(context.Background(), "go", "build", "-C", root, "-o", path, "./cmd/outbox-cdc").CombinedOutput(); err != nil {
		return path, fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
}

func binary(t *testing.T) string {
	t.Helper()
	built.once.Do(func() { built.path, built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// TestScenes does what the pages say.
func TestScenes(t *testing.T) {
	t.Parallel()
	binary(t)
	for i, blocks := range assign(allBlocks(t)) {
		s := scenes[i]
		t.Run(fmt.Sprintf("%s %s", filepath.Base(s.page), s.first), func(t *testing.T) {
			t.Parallel()
			s.play(t, blocks)
		})
	}
}

// play runs the blocks of a scene.
func (s scene) play(t *testing.T, blocks []block) {
	t.Helper()
	var script strings.Builder
	fmt.Fprintf(&script, "%s\n%s\nexec 3>&1 >shown.txt\n", prelude, s.before)
	for _, b := range blocks {
		fmt.Fprintf(&script, "echo '--- %s:%d' >&2\n%s\n", b.page, b.line, s.commands(b))
	}
	fmt.Fprintf(&script, "exec >&3\necho '--- after' >&2\n%s\nstop\n", s.after)

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "outbox.yaml"), []byte(outboxYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir, cmd.Env = dir, s.environment(t, dir)
	// What the shell has started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		shown, _ := os.ReadFile(filepath.Join(dir, "shown.txt"))
		t.Errorf("%v\n%s\nshown by the blocks:\n%s", err, out, shown)
	}
}

// environment starts what a scene needs and says where it is.
func (s scene) environment(t *testing.T, dir string) []string {
	t.Helper()
	db := pgtest.Unmigrated(t)
	t.Cleanup(func() { dropCopy(t, db) })
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "outbox.event.order"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	receiver := httptest.NewServer(http.HandlerFunc(receive))
	t.Cleanup(receiver.Close)
	port, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "BINARY=" + binary(t), "OUTBOX_CONFIG=outbox.yaml", "OUTBOX_SLOT=" + db.Slot(t),
		fmt.Sprintf("OUTBOX_LISTEN=127.0.0.1:%d", port), "KAFKA=" + kafka.ListenAddrs()[0], "RECEIVER=" + receiver.URL,
		"DATABASE_URL=" + db.DSN, "ADMIN_URL=" + db.Admin, "DATABASE=" + db.Name,
	}
}

// receive answers as the type of an event asks.
func receive(w http.ResponseWriter, r *http.Request) {
	switch r.Header.Get("X-Outbox-Event-Type") {
	case "order.refused":
		w.WriteHeader(http.StatusBadRequest)
	case "order.large":
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	case "order.later":
		w.WriteHeader(http.StatusConflict)
	}
}

// dropCopy drops the copy of a database that a scene has made, if it has made one.
func dropCopy(t *testing.T, db *pgtest.Database) {
	t.Helper()
	conn := (&pgtest.Database{DSN: db.Admin}).Conn(t)
	drop := "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '" + db.Name + "_copy'"
	pgtest.Exec(t, conn, drop, "drop database if exists "+db.Name+"_copy with (force)")
}
