// Command mutants breaks the LSN rules of the design on purpose, one at a time, and fails unless a test notices.
//
//	go run ./test/mutants              all of them
//	go run ./test/mutants '3-*' 9-storm   some
//
// A mutant is a patch in this directory, whose text before the diff says
//
//	Rule: 3
//	Breaks: a keepalive counts while an event is in flight
//	Test: ./checkpoint -run '^TestKeepaliveCountsOnlyWhenNothingIsInFlight$'
//
// The named test must be green without the patch, and red with it: a test that fails, no compiler error, no time-out and
// no crash elsewhere. Everything happens in a copy of the working tree; the tree itself is not touched.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// rules is the number of LSN rules in docs/design.md. Each of them needs a mutant.
const rules = 12

func main() {
	flag.Usage = func() { fmt.Fprintln(flag.CommandLine.Output(), "usage: mutants [pattern of names]…") }
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, names []string) (err error) {
	top, err := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return fmt.Errorf("find the checkout: %w", err)
	}
	root := strings.TrimSpace(string(top))
	mutants, err := readMutants(filepath.Join(root, "test", "mutants"))
	if err != nil {
		return err
	}
	if len(names) == 0 {
		if err := covered(mutants); err != nil {
			return err
		}
	} else if mutants, err = choose(mutants, names); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "outbox-mutants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l := lab{root: root, tree: filepath.Join(dir, "tree"), binary: filepath.Join(dir, "mutant.test"), green: map[test]error{}}
	if err := copyTree(ctx, root, l.tree); err != nil {
		return fmt.Errorf("copy the working tree: %w", err)
	}
	// One server for all: starting one for each test would take longer than the tests.
	pg, err := servers.StartPostgres(ctx, servers.PostgresOptions{Settings: servers.NoSync()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	l.database = pg.DSN("postgres")

	began := time.Now()
	var wrong []string
	for _, m := range mutants {
		began := time.Now()
		result := "killed"
		err := l.try(ctx, m)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			result = err.Error()
			wrong = append(wrong, m.name)
		}
		fmt.Fprintf(out, "%4d  %-36s %5.1fs  %s %s  %s\n", m.rule, m.name, time.Since(began).Seconds(), m.test.pkg, m.test.name(), result)
	}
	fmt.Fprintf(out, "%d mutants, %d killed, %s\n", len(mutants), len(mutants)-len(wrong), time.Since(began).Round(time.Second))
	if wrong != nil {
		return fmt.Errorf("not killed: %s", strings.Join(wrong, ", "))
	}
	return nil
}

func covered(mutants []mutant) error {
	for rule := 1; rule <= rules; rule++ {
		if !slices.ContainsFunc(mutants, func(m mutant) bool { return m.rule == rule }) {
			return fmt.Errorf("rule %d has no mutant", rule)
		}
	}
	return nil
}

// choose gives the mutants that match one of the patterns. A pattern that none matches is a mistake.
func choose(mutants []mutant, patterns []string) ([]mutant, error) {
	var chosen []mutant
	for _, p := range patterns {
		found := false
		for _, m := range mutants {
			ok, err := filepath.Match(p, m.name)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", p, err)
			}
			found = found || ok
			if ok && !slices.ContainsFunc(chosen, func(c mutant) bool { return c.name == m.name }) {
				chosen = append(chosen, m)
			}
		}
		if !found {
			return nil, fmt.Errorf("no mutant is called %q", p)
		}
	}
	return chosen, nil
}

// copyTree copies what git knows and what it does not ignore.
func copyTree(ctx context.Context, from, to string) error {
	list := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = from
	names, err := list.Output()
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if err := copyFile(from, to, name); err != nil && !errors.Is(err, os.ErrNotExist) { // deleted, and git was not told
			return err
		}
	}
	return nil
}

func copyFile(from, to, name string) error {
	data, err := os.ReadFile(filepath.Join(from, name))
	if err != nil {
		return err
	}
	path := filepath.Join(to, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o755) // scripts among them
}

func readMutants(dir string) ([]mutant, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	var mutants []mutant
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
		m.name, m.file = strings.TrimSuffix(filepath.Base(file), ".patch"), file
		mutants = append(mutants, m)
	}
	slices.SortFunc(mutants, func(a, b mutant) int { return cmp.Or(cmp.Compare(a.rule, b.rule), cmp.Compare(a.name, b.name)) })
	return mutants, nil
}
