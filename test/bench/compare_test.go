//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSummariseComparesWithinPairs(t *testing.T) {
	t.Parallel()
	f := figure{Old: []float64{2, 4, 10}, New: []float64{2.2, 3, 11}}
	f.summarise()
	if f.OldMedian != 4 || f.NewMedian != 3 {
		t.Errorf("medians %v and %v, want 4 and 3", f.OldMedian, f.NewMedian)
	}
	if want := []ratio{1.1, 0.75, 1.1}; !cmp.Equal(f.Ratios, want) {
		t.Errorf("ratios %v, want %v", f.Ratios, want)
	}
	if want := (spread{Median: 1.1, Lowest: 0.75, Most: 1.1}); f.Ratio != want {
		t.Errorf("spread %+v, want %+v", f.Ratio, want)
	}
	if want := []float64{2, 4, 10}; !slices.Equal(f.Old, want) {
		t.Errorf("old values %v, want %v, in the order of the pairs", f.Old, want)
	}
}

func TestNothingHasNoRatio(t *testing.T) {
	t.Parallel()
	f := figure{Old: []float64{0, 2, 5}, New: []float64{1, 0, 6}}
	f.summarise()
	if want := (spread{Median: 1.2, Lowest: 1.2, Most: 1.2}); f.Ratio != want {
		t.Errorf("spread %+v, want %+v", f.Ratio, want)
	}
	if got := f.Ratios[0].String() + f.Ratios[1].String() + f.Ratios[2].String(); got != "--1.200" {
		t.Errorf("ratios %s", got)
	}
	if got := spreadOf(nil); got != (spread{}) {
		t.Errorf("spread of nothing: %+v", got)
	}
}

// TestComparisonAlternates: the warm-up does not count, and each revision begins every other pair.
func TestComparisonAlternates(t *testing.T) {
	t.Parallel()
	var calls []string
	run := func(name string, value, others float64) func(context.Context, int) (sample, error) {
		return func(_ context.Context, n int) (sample, error) {
			calls = append(calls, name)
			return sample{values: []float64{value * float64(n+1)}, others: others, counts: counts{Duplicated: n}}, nil
		}
	}
	c := comparison{Figures: []figure{{Name: "time", Unit: "s"}}}
	err := c.run(t.Context(), 3, 0.05, contest{
		old: run("old", 1, 0.01), now: run("new", 2, 0.02),
		yardstick: func(_ context.Context, n int) (seconds, others float64, err error) {
			calls = append(calls, "theirs")
			return float64(n), 0.03 * float64(n), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(calls, " "), "theirs new old theirs old new theirs new old theirs old new"; got != want {
		t.Errorf("called %s, want %s", got, want)
	}
	want := []pair{
		{First: "old", Yardstick: 1, Others: 0.03, Quiet: true},
		{First: "new", Yardstick: 2, Others: 0.06},
		{First: "old", Yardstick: 3, Others: 0.09},
	}
	if diff := cmp.Diff(want, c.Pairs); diff != "" {
		t.Errorf("pairs (-want +got):\n%s", diff)
	}
	if f := c.Figures[0]; !slices.Equal(f.Old, []float64{2, 3, 4}) || f.Ratio != (spread{2, 2, 2}) {
		t.Errorf("figure %+v", f)
	}
	if c.Counts.Duplicated != 12 {
		t.Errorf("%+v, want the counts of all runs", c.Counts)
	}
	var table bytes.Buffer
	c.table(&table)
	for _, part := range []string{"2.000", "its time to ours is 0.67 old, 0.33 new", "NOISY: others used up to 9.0 % of the CPU, too much in pairs 2, 3"} {
		if !strings.Contains(table.String(), part) {
			t.Errorf("the table lacks %q:\n%s", part, table.String())
		}
	}
}

func TestComparisonNamesWhatFailed(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	c := comparison{Figures: []figure{{}}}
	err := c.run(t.Context(), 2, 0.05, contest{
		old: func(_ context.Context, n int) (sample, error) {
			if n == 1 {
				return sample{}, broken
			}
			return sample{values: []float64{1}}, nil
		},
		now: func(context.Context, int) (sample, error) { return sample{values: []float64{1}}, nil },
	})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "pair 1: old:") {
		t.Errorf("error %v", err)
	}
}

func TestParseOptionsOfAComparison(t *testing.T) {
	t.Parallel()
	o, err := parseOptions([]string{"-compare", "HEAD", "-pairs", "2", "-sink", "", "-only", ""})
	if err != nil || o.only != throughput || o.pairs != 2 || o.results != "bin/bench-compare.json" || o.patience != 5*time.Second {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := parseOptions([]string{"-compare", "HEAD", "-only", "latency"}); err != nil || o.only != latency || o.pairs != 5 {
		t.Errorf("%+v, %v", o, err)
	}
	for wanted, bad := range map[string][]string{
		"make bench-compare OLD=":  {"-compare", ""},
		"-pairs must be at least":  {"-compare", "HEAD", "-pairs", "0"},
		"invalid value":            {"-compare", "HEAD", "-pairs", "many"},
		"-rounds does not go with": {"-compare", "HEAD", "-rounds", "3"},
		"-profile does not go":     {"-compare", "HEAD", "-profile", "x"},
		"-pairs needs -compare":    {"-pairs", "3"},
		"none of throughput":       {"-compare", "HEAD", "-only", "speed"},
	} {
		if _, err := parseOptions(bad); err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("%q: error %v, want %q in it", bad, err, wanted)
		}
	}
}

// TestRevisions: the old revision is found and its files are those of its commit, and changes are noticed.
func TestRevisions(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, variable := range []string{"GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"} {
		t.Setenv(variable, "bench")
	}
	t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(dir))
	if _, _, err := findRevisions(t.Context(), "HEAD"); err == nil || !strings.Contains(err.Error(), "find the repository") {
		t.Errorf("outside a repository: %v", err)
	}
	do := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	do("init", "-q")
	write("migrations/1.sql", "create")
	do("add", ".")
	do("commit", "-q", "-m", "the first")
	do("tag", "first")
	write("migrations/1.sql", "create more")
	do("commit", "-q", "-a", "-m", "the second")

	old, now, err := findRevisions(t.Context(), "first")
	if err != nil || old.Title != "the first" || now.Title != "the second" || now.Dirty || old.Commit == now.Commit {
		t.Fatalf("old %+v, new %+v, error %v", old, now, err)
	}
	write("new.txt", "")
	if _, now, err = findRevisions(t.Context(), old.Commit); err != nil || !now.Dirty || !strings.Contains(now.String(), "not committed") {
		t.Errorf("with a new file: %v, %v", now, err)
	}
	for _, unknown := range []string{"nonsense", "--all", "first:migrations"} {
		if _, _, err := findRevisions(t.Context(), unknown); err == nil || !strings.Contains(err.Error(), "unknown revision") {
			t.Errorf("%s: error %v", unknown, err)
		}
	}

	old.tree = filepath.Join(t.TempDir(), "old")
	if err := os.MkdirAll(filepath.Join(dir, "migrations"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "migrations")) // the whole tree is checked out all the same
	if err := checkOut(t.Context(), old.Commit, old.tree); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(old.tree, "migrations", "1.sql")); string(text) != "create" || err != nil {
		t.Errorf("checked out %q, %v", text, err)
	}
	if same, err := sameTables(old, now); same || err != nil {
		t.Errorf("other tables: same %v, %v", same, err)
	}
	if same, err := sameTables(old, old); !same || err != nil {
		t.Errorf("the same tables: same %v, %v", same, err)
	}
	if err := checkOut(t.Context(), "nonsense", filepath.Join(t.TempDir(), "x")); err == nil {
		t.Error("an unknown commit is checked out without an error")
	}
}
