package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// mutant is one patch.
type mutant struct {
	name  string
	file  string
	paths []string // what it changes
	rule  int
	test  test
}

// test is what has to turn red.
type test struct{ pkg, pattern string }

// name is that of the function.
func (t test) name() string {
	top, _, _ := strings.Cut(t.pattern, "/")
	return strings.Trim(top, "^$")
}

var (
	ruleLine   = regexp.MustCompile(`(?m)^Rule: (\d+)$`)
	breaksLine = regexp.MustCompile(`(?m)^Breaks: \S`)
	pathLine   = regexp.MustCompile(`(?m)^\+\+\+ b/(\S+)$`)
	testLine   = regexp.MustCompile(`(?m)^Test: (\./\S+) -run '(\^Test\w+\$(?:/[^']+)?)'$`)
)

// parse reads a patch's header.
func parse(patch string) (mutant, error) {
	header, _, found := strings.Cut("\n"+patch, "\n--- ")
	if !found {
		return mutant{}, errors.New("no diff")
	}
	rule, tests := ruleLine.FindStringSubmatch(header), testLine.FindStringSubmatch(header)
	if rule == nil || tests == nil || !breaksLine.MatchString(header) {
		return mutant{}, errors.New("the text before the diff must say Rule: <number>, Breaks: <what> and Test: ./<package> -run '^Test<name>$'")
	}
	n, err := strconv.Atoi(rule[1])
	if err != nil || n < 1 || n > rules {
		return mutant{}, fmt.Errorf("rule %s: there are %d", rule[1], rules)
	}
	m := mutant{rule: n, test: test{tests[1], tests[2]}}
	for _, path := range pathLine.FindAllStringSubmatch(patch, -1) {
		m.paths = append(m.paths, path[1])
	}
	return m, nil
}

// lab is the copy of the tree.
type lab struct {
	root     string // of what it is a copy
	tree     string
	binary   string
	database string         // a superuser's DSN
	green    map[test]error // what was said of tests without a mutant
}

// try gives nil for a mutant that is killed.
func (l *lab) try(ctx context.Context, m mutant) error {
	err, known := l.green[m.test]
	if !known {
		err = l.baseline(ctx, m.test)
		l.green[m.test] = err
	}
	if err != nil {
		return err
	}
	if out, err := l.command(ctx, "", "git", "apply", m.file); err != nil {
		return fmt.Errorf("STALE: the patch no longer applies: refresh it\n%s", out)
	}
	err = l.hunt(ctx, m.test)
	// Not by git apply -R: where lines have moved it may find another place than it did at first.
	for _, path := range m.paths {
		err = errors.Join(err, copyFile(l.root, l.tree, path))
	}
	return err
}

// baseline wants the test to be green, and to have run.
func (l *lab) baseline(ctx context.Context, t test) error {
	out, err := l.run(ctx, t)
	if err != nil {
		return fmt.Errorf("RED WITHOUT IT: %w\n%s", err, out)
	}
	if !ran(out, t) {
		return fmt.Errorf("NO SUCH TEST: -run %q runs nothing, or skips it\n%s", t.pattern, out)
	}
	return nil
}

// ran says that the test was run and passed, down to the level that the pattern names.
func ran(out string, t test) bool {
	result := "--- PASS: " + t.name()
	if strings.Contains(t.pattern, "/") {
		result += "/"
	} else {
		result += " "
	}
	return strings.Contains(out, result)
}

var errBuild = errors.New("DOES NOT COMPILE")

func (l *lab) hunt(ctx context.Context, t test) error {
	out, err := l.run(ctx, t)
	if errors.Is(err, errBuild) {
		return err
	}
	return verdict(out, err, t)
}

// verdict gives nil where the test has failed.
func verdict(out string, err error, t test) error {
	switch {
	case err == nil:
		return errors.New("SURVIVED")
	case strings.Contains(out, "panic: test timed out"):
		return fmt.Errorf("TIMED OUT: make the test fail by itself\n%s", tail(out))
	case strings.Contains(out, "panic: ") && strings.Contains(out, fmt.Sprintf("%q: %q", "test", t.name())):
		return nil // a goroutine of the test has panicked: its stack trace shows the label that the test gave it
	case !strings.Contains(out, "--- FAIL: "+t.name()):
		return fmt.Errorf("CRASHED: no test has failed: %w\n%s", err, tail(out))
	}
	return nil
}

func tail(out string) string { return out[max(0, len(out)-2000):] }

// run builds the package's tests and runs the one.
func (l *lab) run(ctx context.Context, t test) (string, error) {
	// Trimmed, so that what was compiled is found again whatever the copy's path.
	out, err := l.command(ctx, "", "go", "test", "-c", "-vet=off", "-trimpath", "-o", l.binary, t.pkg)
	if err != nil {
		return "", fmt.Errorf("%w: %w\n%s", errBuild, err, out)
	}
	return l.command(ctx, t.pkg, l.binary, "-test.run", t.pattern, "-test.v", "-test.count=1", "-test.timeout=2m")
}

func (l *lab) command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(l.tree, dir)
	// The copy lies in no repository, whatever is above it.
	cmd.Env = append(os.Environ(), "TEST_DATABASE_URL="+l.database, "GIT_CEILING_DIRECTORIES="+filepath.Dir(l.tree))
	out, err := cmd.CombinedOutput()
	return string(out), err
}
