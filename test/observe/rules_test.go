package observe

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// rulesDir has the rules that are delivered.
var rulesDir = filepath.Join("..", "..", "monitoring", "rules")

// ruleFiles returns the paths of all files with rules.
func ruleFiles(t testing.TB) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(rulesDir, "*.yml"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// durations matches what in a rule is a time: how long an alert waits, a range, the range and step of a subquery, and an offset.
var durations = regexp.MustCompile(`(for:\s*|\[|:|\boffset\s+)(\d+)(ms|s|m|h|d|w)\b(\]?)`)

var unitOf = map[string]time.Duration{
	"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour,
}

// shortest is the shortest range: a rate over it has two scrapes for sure.
const shortest = 4 * time.Second

// shorten divides all times of rules, or of a query, by a number. No range gets shorter than shortest.
func shorten(text string, by int) string {
	return durations.ReplaceAllStringFunc(text, func(match string) string {
		m := durations.FindStringSubmatch(match)
		n, err := strconv.Atoi(m[2])
		if err != nil || m[1] == ":" && m[4] == "" { // it is part of a name or of a text
			return match
		}
		d := time.Duration(n) * unitOf[m[3]] / time.Duration(by)
		if m[1] == "[" {
			d = max(d, shortest)
		}
		return fmt.Sprintf("%s%dms%s", m[1], d.Milliseconds(), m[4])
	})
}

// shortRules writes all rules with times that are shorter by a factor, and returns the paths of the copies.
func shortRules(t testing.TB, by int) []string {
	t.Helper()
	var copies []string
	for _, path := range ruleFiles(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		short := filepath.Join(t.TempDir(), filepath.Base(path))
		if err := os.WriteFile(short, []byte(shorten(string(text), by)), 0o600); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, short)
	}
	return copies
}

func TestShorten(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"for: 5m":                            "for: 5000ms",
		"for:  1h":                           "for:  60000ms",
		"rate(x_total[5m]) > 5":              "rate(x_total[5000ms]) > 5",
		"rate(x_total[1m])":                  "rate(x_total[4000ms])",
		"max_over_time(x[1h:1m])":            "max_over_time(x[60000ms:1000ms])",
		"job:x:5m offset 1d":                 "job:x:5m offset 1440000ms",
		"x offset 1d":                        "x offset 1440000ms",
		`summary: "waits for more than 15m"`: `summary: "waits for more than 15m"`,
	} {
		if got := shorten(text, 60); got != want {
			t.Errorf("%s becomes %s, want %s", text, got, want)
		}
	}
}

// promtool finds nothing in the rules, and nothing in the copies with short times.
func TestRulesAreWellFormed(t *testing.T) {
	t.Parallel()
	for _, path := range append(ruleFiles(t), shortRules(t, 60)...) {
		if _, err := servers.Promtool(t.Context(), nil, "check", "rules", path); err != nil {
			t.Error(err)
		}
	}
}
