//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// tick is the unit of the times in /proc: USER_HZ is 100 on every architecture that Go supports.
const tick = 10 * time.Millisecond

// usage is a reading of the CPU time that was used up to a moment.
type usage struct {
	at     time.Time
	others time.Duration // processes that do not descend from this one, and what the hypervisor took
}

// takeUsage adds up the times of all processes. It does not use the totals of /proc/stat: the kernel samples those at the
// clock's tick, and misjudges processes that sleep and wake by timers by more than the share that we look for. When a process
// ends, its time moves to its parent (cutime, cstime), so the sum never shrinks.
func takeUsage() (usage, error) {
	u := usage{at: time.Now()}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return u, err
	}
	parents, used := map[int]int{}, map[int]time.Duration{}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, parent, children, err := parseStat(stat)
		if err != nil {
			return u, fmt.Errorf("%s: %w", path, err)
		}
		if own, err := process.CPUTime(pid); err == nil {
			parents[pid], used[pid] = parent, own+children
		}
	}
	self := os.Getpid()
	for pid, t := range used {
		ancestor := pid
		for ancestor != self && ancestor != 0 {
			ancestor = parents[ancestor]
		}
		if ancestor != self {
			u.others += t
		}
	}
	steal, err := stolen()
	u.others += steal
	return u, err
}

// parseStat reads /proc/pid/stat: the process, its parent, and the CPU time of its children that have ended. The second
// field is the process's name in parentheses, which may contain any character.
func parseStat(stat []byte) (pid, parent int, children time.Duration, err error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[end+1:])
	if end < 0 || len(fields) < 15 {
		return 0, 0, 0, fmt.Errorf("cannot be understood: %q", stat)
	}
	number := func(text []byte) int {
		n, e := strconv.Atoi(string(text))
		if e != nil {
			err = e
		}
		return n
	}
	first, _, _ := bytes.Cut(stat, []byte(" "))
	pid, parent = number(first), number(fields[1])
	return pid, parent, time.Duration(number(fields[13])+number(fields[14])) * tick, err
}

func stolen() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat cannot be understood: %q", line)
	}
	ticks, err := strconv.Atoi(fields[8])
	return time.Duration(ticks) * tick, err
}

// othersSince returns the share of all cores that others have used since then.
func (u usage) othersSince(then usage) float64 {
	return float64(u.others-then.others) / float64(u.at.Sub(then.at)) / float64(runtime.NumCPU())
}

// awaitQuiet waits until others use less than a share of the CPU, but no longer than the given time. If they still use more
// then, the measurement may have to be repeated.
func awaitQuiet(ctx context.Context, share float64, longest time.Duration) error {
	const window = 500 * time.Millisecond
	for range longest / window {
		then, err := takeUsage()
		if err != nil {
			return err
		}
		if err := process.Pause(ctx, window); err != nil {
			return err
		}
		now, err := takeUsage()
		if err != nil || now.othersSince(then) < share {
			return err
		}
	}
	return nil
}

type machine struct {
	CPU       string  `json:"cpu"`
	Cores     int     `json:"cores"`
	MemoryGiB float64 `json:"memory_gib"`
	Kernel    string  `json:"kernel"`
}

func describeMachine() machine {
	m := machine{CPU: runtime.GOARCH, Cores: runtime.NumCPU()}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		m.MemoryGiB = float64(info.Totalram*uint64(info.Unit)>>20) / 1024
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	return m
}
