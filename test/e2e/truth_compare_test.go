package e2e

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// reading is a value that was read between two moments.
type reading struct {
	asked, answered time.Time
	value           float64
}

// figure is a number that the connector shows, beside what it should be. Both were read again and again, at their own times.
type figure struct {
	name         string
	shown, truth []reading
	tolerance
}

// tolerance says by how much a value may differ because it is read at another moment than the truth.
type tolerance struct {
	slack float64
	// steps is true for numbers that rise and fall fast: between two readings they may reach as much more as they differ by.
	steps bool
}

// difference is a time in which a figure was wrong.
type difference struct {
	figure   string
	from, to time.Time // from is when the shown value had last been true, at most; to is when it was last shown
	shown    float64   // the last wrong value
	least    float64   // the least and the most that the truth was meanwhile
	most     float64
}

func (d difference) text(began time.Time) string {
	at := func(t time.Time) string { return t.Sub(began).Round(100 * time.Millisecond).String() }
	truth := number(d.least)
	if d.least != d.most {
		truth += " to " + number(d.most)
	}
	return fmt.Sprintf("%s: wrong from %s to %s (%s): shown %s, in truth %s", d.figure, at(d.from), at(d.to),
		d.to.Sub(d.from).Round(100*time.Millisecond), number(d.shown), truth)
}

func number(v float64) string { return strconv.FormatFloat(math.Round(v*1000)/1000, 'f', -1, 64) }

// differences returns when a figure was wrong for longer than patience. A value is right if the truth had it, or passed it, within
// patience before it was shown: the truth changes between two readings of it, so each value between them counts.
func (f figure) differences(patience time.Duration) (all []difference) {
	var wrong *difference
	for _, s := range f.shown {
		least, most, known := f.truthIn(s.asked.Add(-patience), s.answered)
		switch {
		case !known || s.value >= least-f.slack && s.value <= most+f.slack:
			wrong = nil
		case wrong == nil:
			all = append(all, difference{figure: f.name, from: s.asked.Add(-patience), to: s.answered, shown: s.value, least: least, most: most})
			wrong = &all[len(all)-1]
		default:
			wrong.to, wrong.shown = s.answered, s.value
			wrong.least, wrong.most = least, most
		}
	}
	return all
}

// truthIn returns the least and the most that the truth was between two moments. known is false if it was not read before, or not
// afterwards.
func (f figure) truthIn(from, to time.Time) (least, most float64, known bool) {
	// At from the truth was what the last reading before said, and at the end something between the last reading and the next one.
	first, next := f.firstAfter(from)-1, f.firstAfter(to)
	if first < 0 || next == len(f.truth) {
		return 0, 0, false
	}
	least, most = f.truth[first].value, f.truth[first].value
	step := 0.0
	for i, r := range f.truth[first : next+1] {
		least, most = min(least, r.value), max(most, r.value)
		if f.steps && i > 0 {
			step = max(step, math.Abs(r.value-f.truth[first+i-1].value))
		}
	}
	return least - step, most + step, true
}

// firstAfter returns the first reading of the truth that was asked for at or after a moment.
func (f figure) firstAfter(at time.Time) int {
	i, _ := slices.BinarySearchFunc(f.truth, at, func(r reading, at time.Time) int { return r.asked.Compare(at) })
	return i
}

// The comparison notices what is wrong for longer than 3 s, and says from when to when; and nothing else.
func TestDifferences(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	// every returns readings of every 200 ms, whose values hold for a second each.
	every := func(values ...float64) (all []reading) {
		for i := range 5 * len(values) {
			at := began.Add(time.Duration(i) * 200 * time.Millisecond)
			all = append(all, reading{at, at.Add(10 * time.Millisecond), values[i/5]})
		}
		return all
	}
	for name, test := range map[string]struct {
		shown, truth []reading
		tolerance    tolerance
		want         string // "" for right
	}{
		"the same":            {every(1, 2, 3, 4, 5, 6), every(1, 2, 3, 4, 5, 6), tolerance{}, ""},
		"late by two seconds": {every(0, 0, 0, 1, 1, 1, 1, 1), every(0, 1, 1, 1, 1, 1, 1, 1), tolerance{}, ""},
		"late by five seconds": {
			every(0, 0, 0, 0, 0, 0, 1, 1), every(0, 1, 1, 1, 1, 1, 1, 1), tolerance{}, "wrong from 1.2s to 5.8s (4.6s): shown 0, in truth 1",
		},
		"always a second late":         {every(0, 1, 3, 7, 13, 14, 19, 30), every(1, 3, 7, 13, 14, 19, 30, 40), tolerance{}, ""},
		"a value that never was":       {every(5, 5, 5, 5, 7, 5), every(5, 5, 5, 5, 5, 5), tolerance{}, "shown 7, in truth 5"},
		"within the slack":             {every(5, 5, 5, 5, 7, 5), every(5, 5, 5, 5, 5, 5), tolerance{slack: 2}, ""},
		"the top between two readings": {every(5, 5, 5, 5, 7, 5), every(5, 5, 5, 3, 5, 5), tolerance{steps: true}, ""},
		"far beyond the top":           {every(5, 5, 5, 5, 9, 5), every(5, 5, 5, 3, 5, 5), tolerance{steps: true}, "shown 9, in truth 1 to 7"},
		"before the truth was known":   {every(9, 9, 9, 9, 9, 9), every(1, 1, 1, 1, 1, 1)[28:], tolerance{}, ""},
	} {
		got := figure{name: "f", shown: test.shown, truth: test.truth, tolerance: test.tolerance}.differences(3 * time.Second)
		text := ""
		for _, d := range got {
			text += d.text(began) + "\n"
		}
		if (test.want == "") != (text == "") || !strings.Contains(text, test.want) || len(got) > 1 {
			t.Errorf("%s: %q, want %q", name, text, test.want)
		}
	}
}
