package rules

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "remove the lines of allowed.txt that are no longer needed")

// violations are what breaks a rule, by the name under which allowed.txt may excuse it. Names have no line numbers, which
// change too often.
type violations map[string]string

// add notes a violation; the first of a name is kept.
func (v *violations) add(name, format string, args ...any) {
	if *v == nil {
		*v = violations{}
	}
	if _, known := (*v)[name]; !known {
		(*v)[name] = fmt.Sprintf(format, args...)
	}
}

// allowed is the file with what is excused. A line is
//
//	rule: name  # reason
const allowed = "allowed.txt"

// allowedMu is held while the file is read or written: the tests run in parallel.
var allowedMu sync.Mutex

// compare fails for each violation that is not excused, and for each excuse that has no reason or is no longer needed.
func (v violations) compare(t *testing.T, rule string) {
	t.Helper()
	allowedMu.Lock()
	defer allowedMu.Unlock()
	text, err := os.ReadFile(allowed)
	if err != nil {
		t.Fatal(err)
	}
	excused := map[string]bool{}
	var keep []string
	for line := range strings.Lines(string(text)) {
		name, reason, ok := parseLine(line, rule)
		switch {
		case !ok:
		case reason == "":
			t.Errorf("%s: %s: say why", allowed, strings.TrimSpace(line))
		case excused[name] && *update:
			continue
		case excused[name]:
			t.Errorf("%s: %s %q is excused twice", allowed, rule, name)
		case v[name] == "" && !*update:
			t.Errorf("%s: %s %q is mended: remove the line, or run go test ./test/rules -update", allowed, rule, name)
		case v[name] == "":
			continue
		default:
			excused[name] = true
		}
		keep = append(keep, line)
	}
	if now := strings.Join(keep, ""); *update && now != string(text) {
		if err := os.WriteFile(allowed, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if !excused[name] {
			t.Errorf("%s (%s: %s)", v[name], rule, name)
		}
	}
}

// parseLine reads a line of the file; ok is false if it is not of this rule.
func parseLine(line, rule string) (name, reason string, ok bool) {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "#") {
		return "", "", false
	}
	of, rest, found := strings.Cut(line, ": ")
	if !found || of != rule {
		return "", "", false
	}
	name, reason, _ = strings.Cut(rest, "  # ")
	return strings.TrimSpace(name), strings.TrimSpace(reason), true
}

func TestParseLine(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"panic: config.scalar  # a mistake of ours\n": "config.scalar|a mistake of ours|true",
		"panic: a.b\n":        "a.b||true",
		"case: x: Foo, foo\n": "||false",
		"# panic: a\n":        "||false",
		"\n":                  "||false",
	} {
		name, reason, ok := parseLine(line, "panic")
		if got := fmt.Sprintf("%s|%s|%v", name, reason, ok); got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
}

// TestAllowedNamesRules: a line of a rule that does not exist would excuse nothing, and nobody would miss it.
func TestAllowedNamesRules(t *testing.T) {
	t.Parallel()
	allowedMu.Lock()
	defer allowedMu.Unlock()
	text, err := os.ReadFile(allowed)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		rule, _, _ := strings.Cut(line, ": ")
		if line != "" && !strings.HasPrefix(line, "#") && !slices.Contains(ruleNames, rule) {
			t.Errorf("%s: %q begins with none of %s", allowed, line, strings.Join(ruleNames, ", "))
		}
	}
}

var ruleNames = []string{"imports", "length", "case", "bool", "goroutine", "panic", "init", "sleep", "name", "error", "prose", "reference", "exported"}
