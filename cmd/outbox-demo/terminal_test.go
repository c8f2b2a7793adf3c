//go:build linux && !containers

package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// On a terminal no line is longer than it is wide, what breaks is in colour unless that is switched off, and Ctrl-C ends it cleanly.
func TestDemoOnTerminal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		columns     uint16
		environment string
		colours     bool
	}{
		{80, "TERM=xterm", true},
		{100, "NO_COLOR=1", false},
	} {
		t.Run(fmt.Sprintf("%d columns, %s", c.columns, c.environment), func(t *testing.T) {
			t.Parallel()
			d := newDemo(t, "--chaos=webhooks", "--outage", "1500ms", "--rate", "20")
			d.cmd.Env = append(d.cmd.Env, c.environment)
			keyboard, tty := openTerminal(t, c.columns)
			d.cmd.Stdin, d.cmd.Stdout, d.cmd.Stderr = tty, tty, tty
			d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			d.start(t, keyboard)
			tty.Close() // so that reading ends with the process
			d.await(t, `caught up, nothing missing`)
			d.await(t, `answers 503`) // Ctrl-C comes while the next is broken
			if _, err := keyboard.WriteString("\x03"); err != nil {
				t.Fatal(err)
			}
			d.await(t, `Nothing missing, nothing twice`)
			if code := d.wait(t); code != 0 {
				t.Errorf("exit code %d\n%s", code, strings.Join(d.seen, "\n"))
			}
			painted := regexp.MustCompile(`\x1b\[[0-9;]*m`)
			if found := slices.ContainsFunc(d.seen, painted.MatchString); found != c.colours {
				t.Errorf("colours: %t, want %t", found, c.colours)
			}
			if c.colours {
				for i, line := range d.seen {
					d.seen[i] = painted.ReplaceAllString(line, "")
				}
			}
			d.fits(t, int(c.columns))
			d.nothingLeft(t, "")
		})
	}
}

// openTerminal opens a pseudo-terminal of so many columns: the end of who sits before it, and that of the program.
func openTerminal(t *testing.T, columns uint16) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keyboard.Close() })
	control := int(keyboard.Fd())
	if err := unix.IoctlSetPointerInt(control, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(control, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(control, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: columns}); err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return keyboard, tty
}
