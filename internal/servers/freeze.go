package servers

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Freeze stops a process with SIGSTOP, and returns when each of its threads stands still. kill(2) returns earlier: the thread that takes the
// signal has to get a processor first, and meanwhile the other threads go on. SIGCONT lets the process go on.
func Freeze(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		running, err := threadsNotStopped(pid)
		if err != nil || running == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d threads of process %d have not stopped within 10s", running, pid)
		}
	}
}

// threadsNotStopped counts the threads of a process whose state is not T, stopped (proc(5)). Where there is no /proc, it finds none.
func threadsNotStopped(pid int) (int, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return 0, err
	}
	running := 0
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil { // the thread has ended
			continue
		}
		// The state follows the name, which is in parentheses and may have others in it.
		if state := bytes.LastIndexByte(stat, ')') + 2; state >= len(stat) || stat[state] != 'T' {
			running++
		}
	}
	return running, nil
}
