//go:build linux

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// figure is one thing that is measured of both revisions.
type figure struct {
	Name string    `json:"name"`
	Unit string    `json:"unit"`
	Old  []float64 `json:"old"` // by pair
	New  []float64 `json:"new"`
	// The rest is set by summarise.
	OldMedian float64 `json:"old_median"`
	NewMedian float64 `json:"new_median"`
	Ratios    []ratio `json:"ratios"` // of each pair
	Ratio     spread  `json:"ratio"`
}

// ratio is new to old within a pair; 0 if either was 0, which compares with nothing.
type ratio float64

// spread is the median of some ratios, the lowest and the highest; all 0 if there are none.
type spread struct {
	Median float64 `json:"median"`
	Lowest float64 `json:"lowest"`
	Most   float64 `json:"highest"`
}

func ratioOf(old, now float64) ratio {
	if old <= 0 || now <= 0 {
		return 0
	}
	return ratio(now / old)
}

func (r ratio) String() string {
	if r == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", float64(r))
}

func spreadOf(ratios []ratio) (s spread) {
	var known []float64
	for _, r := range ratios {
		if r > 0 {
			known = append(known, float64(r))
		}
	}
	if len(known) > 0 {
		s = spread{Median: median(known), Lowest: slices.Min(known), Most: slices.Max(known)}
	}
	return s
}

// summarise computes medians and ratios of what was measured. The median of the ratios is not the ratio of the medians:
// both runs of a pair met the same minute of this machine.
func (f *figure) summarise() {
	f.OldMedian, f.NewMedian = median(slices.Clone(f.Old)), median(slices.Clone(f.New))
	f.Ratios = nil
	for i, old := range f.Old {
		f.Ratios = append(f.Ratios, ratioOf(old, f.New[i]))
	}
	f.Ratio = spreadOf(f.Ratios)
}

// compareResult is the comparison of two revisions.
type compareResult struct {
	Machine       machine      `json:"machine"`
	Versions      versions     `json:"versions"` // outbox_cdc is the new revision's
	Command       []string     `json:"command"`
	Old           revision     `json:"old"`
	New           revision     `json:"new"`
	SharedBacklog bool         `json:"shared_backlog"` // both read the same events of one database
	Comparisons   []comparison `json:"comparisons"`
}

// check fails if a run did not deliver everything, once and in order: its figures would mean nothing.
func (r compareResult) check() error {
	var all counts
	for _, c := range r.Comparisons {
		all = all.add(c.Counts)
	}
	return all.check()
}

func (r compareResult) write(w io.Writer, o options) error {
	return writeResults(w, o, r, r.table)
}

func (r compareResult) table(w io.Writer) {
	m := r.Machine
	fmt.Fprintf(w, "%s, %d cores, %.0f GiB; PostgreSQL %s; %s\n", m.CPU, m.Cores, m.MemoryGiB, r.Versions.PostgreSQL, r.Versions.Go)
	fmt.Fprintf(w, "old: %s\nnew: %s\n", r.Old, r.New)
	for _, c := range r.Comparisons {
		c.table(w)
	}
}

func (c comparison) table(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n", c.Title)
	columns(w, func(w io.Writer) {
		fmt.Fprint(w, "medians\told\tnew\t\tnew/old\tlowest\thighest\t")
		for n := range c.Pairs {
			fmt.Fprintf(w, "pair %d\t", n+1)
		}
		fmt.Fprintln(w)
		for _, f := range c.Figures {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t", f.Name, significant(f.OldMedian), significant(f.NewMedian), f.Unit,
				ratio(f.Ratio.Median), ratio(f.Ratio.Lowest), ratio(f.Ratio.Most))
			for _, r := range f.Ratios {
				fmt.Fprintf(w, "%s\t", r)
			}
			fmt.Fprintln(w)
		}
	})
	if seconds := c.yardstick(); seconds > 0 {
		time := c.Figures[0]
		fmt.Fprintf(w, "pg_recvlogical %.2f s: its time to ours is %.2f old, %.2f new\n", seconds, seconds/time.OldMedian, seconds/time.NewMedian)
	}
	fmt.Fprintln(w, c.noise())
}

// yardstick is the median of pg_recvlogical's seconds; 0 if it was not measured.
func (c comparison) yardstick() float64 {
	var seconds []float64
	for _, p := range c.Pairs {
		seconds = append(seconds, p.Yardstick)
	}
	return median(seconds)
}

// noise says how much others have disturbed.
func (c comparison) noise() string {
	var noisy []string
	most := 0.0
	for i, p := range c.Pairs {
		most = max(most, p.Others)
		if !p.Quiet {
			noisy = append(noisy, fmt.Sprint(i+1))
		}
	}
	if len(noisy) == 0 {
		return fmt.Sprintf("others used at most %.1f %% of the CPU", 100*most)
	}
	return fmt.Sprintf("NOISY: others used up to %.1f %% of the CPU, too much in pairs %s; measure again when nothing else runs here",
		100*most, strings.Join(noisy, ", "))
}

// significant shows three digits of a small figure, and all before the point of a large one.
func significant(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
