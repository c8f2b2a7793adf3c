package monitoring

import (
	"math"
	"testing"
	"time"
)

// A rate follows a change within three seconds. Behind a slow sink it is that of the last chunk, and it falls when none comes.
func TestPace(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0)
	after := func(seconds float64) time.Time { return at.Add(time.Duration(seconds * float64(time.Second))) }
	type look struct {
		after  float64
		walked int64
	}
	steady := func(from, to, every float64, start int64, rows int64) (all []look) {
		for s := from; s <= to; s += every {
			all = append(all, look{s, start})
			start += rows
		}
		return all
	}
	for name, test := range map[string]struct {
		looks []look
		now   float64
		want  float64 // negative: not known
	}{
		"nothing":                           {nil, 0, -1},
		"just begun":                        {[]look{{0, 0}}, 7.9, -1},
		"no step yet":                       {[]look{{0, 0}}, 8, 0},
		"the first step":                    {[]look{{0, 0}, {.5, 5000}}, .5, 10_000},
		"many steps":                        {steady(0, 20, .05, 0, 250), 20, 5000},
		"slower since three seconds":        {append(steady(0, 20, .05, 0, 250), steady(20.5, 23.5, .5, 100_250, 250)...), 23.5, 500},
		"none for three seconds":            {steady(0, 20, .05, 0, 250), 23, 82},
		"a chunk of 50 s":                   {[]look{{0, 0}, {50, 5000}, {100, 10_000}}, 140, 100},
		"a chunk of 50 s, and none after":   {[]look{{0, 0}, {50, 5000}, {100, 10_000}}, 200, 50},
		"it stands still":                   {[]look{{0, 0}, {50, 5000}, {100, 10_000}}, 600, 0},
		"it stands still after a quick run": {steady(0, 20, .05, 0, 250), 80, 0},
		"looks without progress":            {[]look{{0, 0}, {1, 100}, {2, 100}, {3, 100}, {4, 200}}, 4, 33.3},
	} {
		var p Pace
		for _, l := range test.looks {
			p.Add(after(l.after), l.walked)
		}
		got := -1.0
		if rate := p.Rate(after(test.now)); rate != nil {
			got = *rate
		}
		if math.Abs(got-test.want) > .05*math.Abs(test.want) {
			t.Errorf("%s: %v rows/s, want %v", name, got, test.want)
		}
		if len(p.points) > 70 {
			t.Errorf("%s: %d points are kept", name, len(p.points))
		}
	}
}

func TestRowsLeft(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		estimate, walked int64
		want             int64 // negative: not known
	}{{0, 0, -1}, {10, 0, 10}, {10, 10, 0}, {10, 11, -1}} {
		got := int64(-1)
		if left := RowsLeft(test.estimate, test.walked); left != nil {
			got = *left
		}
		if got != test.want {
			t.Errorf("%d of %d: %d left, want %d", test.walked, test.estimate, got, test.want)
		}
	}
	if SecondsLeft(new(int64(5)), new(0.0)) != nil || SecondsLeft(nil, new(1.0)) != nil || *SecondsLeft(new(int64(5)), new(2.0)) != 2.5 {
		t.Error("the time that is left")
	}
}
