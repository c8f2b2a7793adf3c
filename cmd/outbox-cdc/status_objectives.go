package main

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const objectiveFormat = "%-14s %-18s %9s %8s %8s %8s\n"

// objectives writes how each sink does against its objective, if the instance that streams has said it.
func (s *screen) objectives(sinks []admin.StatusSink) {
	head := false
	for i := range sinks {
		o := sinks[i].Objective
		if o == nil {
			continue
		}
		if !head {
			head = true
			s.gap()
			line := fmt.Sprintf(objectiveFormat, "OBJECTIVE", "GOAL", "28 DAYS", "LEFT", "BURN 1H", "BURN 6H")
			s.b.WriteString(s.bold(strings.TrimSuffix(line, "\n")) + "\n")
		}
		s.objective(sinks[i].Name, o)
	}
}

func (s *screen) objective(name string, o *monitoring.ObjectiveReport) {
	name = clean(name)
	if utf8.RuneCountInString(name) > 14 {
		s.b.WriteString(shorten(name, screenWidth) + "\n")
		name = ""
	}
	share := ""
	if o.InTimePercent != nil {
		share = shareText(*o.InTimePercent)
	}
	goal := numberText(o.Percent) + "% in " + secondsOrLess(o.WithinSeconds)
	fmt.Fprintf(&s.b, objectiveFormat, name, goal, share, fmt.Sprintf("%.0f%%", math.Floor(100*o.BudgetLeft)), burnText(o.BurnHour), burnText(o.BurnSixHours))
	t := o.Trend
	if t.Hour.Events+t.HourBefore.Events+t.DayBefore.Events == 0 {
		return
	}
	s.wrapped("  ", fmt.Sprintf("%s to %s UTC: %s; the hour before: %s; the day before: %s", t.Start.UTC().Format("15:04"),
		t.Start.Add(time.Hour).UTC().Format("15:04"), inTimeText(t.Hour), inTimeText(t.HourBefore), inTimeText(t.DayBefore)))
}

// inTimeText returns how many events there were in an hour, and which share of them was in time.
func inTimeText(c monitoring.CountInTime) string {
	if c.Events == 0 {
		return "none"
	}
	return compact(float64(c.Events)) + " events, " + shareText(monitoring.Percent(float64(c.InTime)/float64(c.Events))) + " in time"
}

// shareText returns per cents with at most two digits behind the point. It does not say 100% unless it is all.
func shareText(percent float64) string {
	return numberText(float64(int64(percent*100+1e-6))/100) + "%"
}

// secondsOrLess is secondsText for what may be milliseconds.
func secondsOrLess(seconds float64) string {
	if seconds < 1 {
		return fmt.Sprintf("%.0fms", 1000*seconds)
	}
	return secondsText(seconds)
}

// burnText returns a burn rate, which may be in the hundreds.
func burnText(rate float64) string {
	if rate >= 100 {
		return fmt.Sprintf("%.0f", rate)
	}
	return numberText(float64(int64(rate*100+.5)) / 100)
}
