//go:build linux

package process

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Program is a command that measures something.
type Program[O any] struct {
	Parse func(args []string) (O, error)
	// Run ends soon after its context has: then with what it has started ended and removed.
	Run func(context.Context, O) error
	// Children are what the program is instead, when its first argument names one: a process to measure.
	Children map[string]func(args []string) error
}

// Main does what the arguments of this process say, and returns its exit code: 2 where they are wrong, 1 where Run fails.
func (p Program[O]) Main() int {
	if len(os.Args) > 1 && p.Children[os.Args[1]] != nil {
		return report(1, p.Children[os.Args[1]](os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	runtime.GOMAXPROCS(runtime.NumCPU() + 1) // Pace blocks a thread, for which the Go runtime counts it as running
	options, err := p.Parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return report(2, err)
	}
	if err := p.Run(ctx, options); err != nil {
		return report(1, cmp.Or(context.Cause(ctx), err))
	}
	return 0
}

// report prints an error and returns the code, or 0 where there is none.
func report(code int, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	return code
}

// Note tells whoever watches how far the program is.
func Note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// List splits a flag's value at commas and spaces.
func List(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
}

// Packages of the programs that are built to be measured.
const (
	Product   = "./cmd/outbox-cdc"
	KafkaFake = "./internal/servers/cmd/kafkafake"
)

// Build builds a package of the sources in tree as "make build" does, so that nothing older is measured by mistake, and
// returns the path of the binary, which it writes into dir.
func Build(ctx context.Context, tree, pkg, dir string) (string, error) {
	path := filepath.Join(dir, filepath.Base(pkg))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}
