//go:build !containers

package servers

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// More threads want a processor than there are processors, so the one that takes the signal may have to wait for its turn.
func TestFreeze(t *testing.T) {
	t.Parallel()
	self := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestIsBusyForAnotherTest$")
	self.Env = append(os.Environ(), "OUTBOX_TEST_BUSY=1")
	if err := self.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = self.Process.Kill()
		_ = self.Wait()
	}()
	pid := self.Process.Pid
	running := func() int {
		t.Helper()
		n, err := threadsNotStopped(pid)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "it is busy", func() bool { return running() > 2*runtime.NumCPU() })
	for range 50 {
		if err := Freeze(pid); err != nil {
			t.Fatal(err)
		}
		if n := running(); n > 0 {
			t.Fatalf("%d threads go on", n)
		}
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it goes on", func() bool { return running() > 0 })
	}
}

// TestIsBusyForAnotherTest is the process that is stopped.
func TestIsBusyForAnotherTest(t *testing.T) {
	if os.Getenv("OUTBOX_TEST_BUSY") == "" {
		return
	}
	threads := 4 * runtime.NumCPU()
	runtime.GOMAXPROCS(threads)
	for range threads {
		go func() {
			for { //nolint:staticcheck // it is to be busy
			}
		}()
	}
	<-t.Context().Done()
}
