//go:build !containers

package servers

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A test binary that times out or is killed runs no cleanup.
func TestServerDiesWithWhoStartedIt(t *testing.T) {
	t.Parallel()
	dir := reachableDir(t)
	self := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStartsAServerForAnotherTest$", "-test.v")
	self.Env = append(os.Environ(), "OUTBOX_TEST_SERVER_DIR="+dir)
	stdout, err := self.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Start(); err != nil {
		t.Fatal(err)
	}
	var addr string
	for lines := bufio.NewScanner(stdout); addr == "" && lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "server at "); ok {
			addr = rest
		}
	}
	if err := self.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = self.Wait()
	if addr == "" {
		t.Fatal("it started no server")
	}

	eventually(t, "the server is gone", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})

	locks, err := filepath.Glob(filepath.Join(dir, "*", lockName))
	if err != nil || len(locks) != 1 {
		t.Fatalf("directories left: %v (%v), want one", locks, err)
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(locks[0], long, long); err != nil {
		t.Fatal(err)
	}
	removeAbandoned(dir)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left after the next start: %v (%v)", left, err)
	}
}

// TestStartsAServerForAnotherTest is the process that gets killed.
func TestStartsAServerForAnotherTest(t *testing.T) {
	dir := os.Getenv("OUTBOX_TEST_SERVER_DIR")
	if dir == "" {
		return
	}
	p := postgresFor(t, PostgresOptions{Settings: NoSync(), Dir: dir})
	os.Stdout.WriteString("server at " + p.Addr() + "\n")
	<-t.Context().Done()
}

// A directory in use is not taken for an abandoned one, however old it is.
func TestDirectoryInUseStays(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	d, err := newDirectory(parent, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(d.path, lockName), long, long); err != nil {
		t.Fatal(err)
	}
	removeAbandoned(parent)
	if _, err := os.Stat(d.path); err != nil {
		t.Error(err)
	}
	if err := d.remove(); err != nil {
		t.Error(err)
	}
}
