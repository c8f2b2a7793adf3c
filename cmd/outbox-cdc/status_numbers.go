package main

import (
	"fmt"
	"math"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

func oldestText(r admin.StatusRows) string {
	if r.OldestSeconds == nil {
		return ""
	}
	text := secondsText(*r.OldestSeconds)
	if r.OldestAtLeast {
		text += "+"
	}
	return text
}

// countText returns one of the numbers of rows, in seven characters at most.
func countText(n *int64, of admin.StatusRows) string {
	if n == nil || *n == 0 && of.AtLeast {
		return "?"
	}
	text := compact(float64(*n))
	if of.AtLeast {
		text += "+"
	}
	return text
}

func perSecondText(r *float64) string {
	switch {
	case r == nil:
		return ""
	case *r > 0 && *r < 10:
		return fmt.Sprintf("%.1f", *r)
	}
	return compact(*r)
}

// compact returns a number as a person reads it: 9,999, 12.3k, 4.5M.
func compact(n float64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%.0f", n)
	case n < 10_000:
		return fmt.Sprintf("%d,%03d", int(n)/1000, int(n)%1000)
	case n < 100_000:
		return fmt.Sprintf("%.1fk", math.Floor(n/100)/10)
	case n < 1_000_000:
		return fmt.Sprintf("%dk", int(n/1000))
	case n < 100_000_000:
		return fmt.Sprintf("%.1fM", n/1e6)
	}
	return fmt.Sprintf("%.0fM", n/1e6)
}

// bytesText returns a size as pg_size_pretty does, with one digit behind the point where it helps.
func bytesText(n int64) string {
	value, units := float64(n), []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for ; value >= 1024 && i < len(units)-1; i++ {
		value /= 1024
	}
	if i == 0 || value >= 100 {
		return fmt.Sprintf("%.0f %s", value, units[i])
	}
	return fmt.Sprintf("%.1f %s", value, units[i])
}

// sizeText is bytesText of a size that nobody may know.
func sizeText(n *int64) string {
	if n == nil {
		return "?"
	}
	return bytesText(*n)
}

// ago returns how long ago a time is, and until how long it takes until a time; "" if there is none.
func ago(now time.Time, t *time.Time) string {
	if t == nil {
		return ""
	}
	return secondsText(max(0, now.Sub(*t).Seconds()))
}

func until(now time.Time, t *time.Time) string {
	if t == nil {
		return ""
	}
	return secondsText(max(0, t.Sub(now).Seconds()))
}

// secondsText returns a duration in six characters at most, in its two largest units.
func secondsText(seconds float64) string {
	switch d := time.Duration(seconds * float64(time.Second)); {
	case seconds >= 1000*86400:
		return fmt.Sprintf("%.0fd", seconds/86400)
	case d < 10*time.Second && seconds != float64(int(seconds)):
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return twoUnits(int(d.Minutes()), "m", int(d.Seconds())%60, "s")
	case d < 24*time.Hour:
		return twoUnits(int(d.Hours()), "h", int(d.Minutes())%60, "m")
	case d < 100*24*time.Hour:
		return twoUnits(int(d.Hours())/24, "d", int(d.Hours())%24, "h")
	}
	return fmt.Sprintf("%.0fd", seconds/86400)
}

// twoUnits leaves out the smaller unit if there is none of it.
func twoUnits(large int, unit string, small int, smallUnit string) string {
	if small == 0 {
		return fmt.Sprintf("%d%s", large, unit)
	}
	return fmt.Sprintf("%d%s%02d%s", large, unit, small, smallUnit)
}
