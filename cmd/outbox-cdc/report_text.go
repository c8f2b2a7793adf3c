package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

// reportSection is a part of a report: a table, or text where there is nothing for a table.
type reportSection struct {
	title string
	text  string
	head  []string
	rows  [][]string
}

// reportText returns a report for a terminal.
func reportText(r *admin.Report) string {
	var b strings.Builder
	b.WriteString(reportHead(r) + "\n")
	for _, s := range reportSections(r) {
		b.WriteString("\n" + strings.ToUpper(s.title) + "\n")
		if s.text != "" {
			b.WriteString(s.text + "\n")
		}
		if len(s.rows) > 0 {
			b.WriteString(tableText(strings.ToUpper(strings.Join(s.head, " ")), s.rows))
		}
	}
	return b.String()
}

// reportMarkdown returns a report as a page of Markdown.
func reportMarkdown(r *admin.Report) string {
	var b strings.Builder
	b.WriteString("# " + reportHead(r) + "\n")
	for _, s := range reportSections(r) {
		b.WriteString("\n## " + strings.ToUpper(s.title[:1]) + s.title[1:] + "\n\n")
		if s.text != "" {
			b.WriteString(markdownCell(s.text) + "\n")
		}
		if len(s.rows) == 0 {
			continue
		}
		if s.text != "" {
			b.WriteByte('\n')
		}
		b.WriteString("| " + strings.Join(s.head, " | ") + " |\n|" + strings.Repeat(" --- |", len(s.head)) + "\n")
		for _, row := range s.rows {
			for i := range row {
				row[i] = markdownCell(row[i])
			}
			b.WriteString("| " + strings.Join(row, " | ") + " |\n")
		}
	}
	return b.String()
}

// markdownCell returns text that a table of Markdown shows as it is. Error texts have what a receiver has answered.
func markdownCell(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "`", "'").Replace(clean(s))
}

func reportHead(r *admin.Report) string {
	return fmt.Sprintf("Report of %s, %s to %s UTC", clean(r.Connector), minuteText(r.From), minuteText(r.At))
}

func minuteText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

func reportSections(r *admin.Report) []reportSection {
	all := []reportSection{objectiveSection(r)}
	for _, s := range []reportSection{budgetSection(r), trendSection(r), hoursSection(r), failuresSection(r), deadSection(r), stagesSection(r)} {
		if len(s.rows) > 0 || s.text != "" {
			all = append(all, s)
		}
	}
	if len(r.Unknown) > 0 {
		s := reportSection{title: "not known", head: []string{"what"}}
		for _, u := range r.Unknown {
			s.rows = append(s.rows, []string{u})
		}
		all = append(all, s)
	}
	return all
}

func objectiveSection(r *admin.Report) reportSection {
	s := reportSection{title: "objectives", head: []string{"sink", "objective", "events", "in-time", "p50", "p99", "worst", "met"}}
	var events int64
	for i := range r.Sinks {
		sink := &r.Sinks[i]
		events += sink.Period.Events
		goal := "none: not configured"
		if o := sink.Objective; o != nil {
			goal = numberText(o.Percent) + "% within " + tookText(&o.WithinSeconds)
		}
		s.rows = append(s.rows, append([]string{sink.Name, goal}, append(periodCells(&sink.Period), metText(sink.Met))...))
	}
	switch {
	case len(r.Sinks) == 0:
		s.text = "This connector has no sinks yet: its first start makes them known."
	case events == 0:
		s.text = "No event was accepted or given up in this time."
	}
	return s
}

func periodCells(p *admin.ReportPeriod) []string {
	share := "" // not "0%"
	if p.Percent != nil {
		share = numberText(*p.Percent) + "%"
	}
	return []string{strconv.FormatInt(p.Events, 10), share, tookText(p.P50), tookText(p.P99), tookText(p.Worst)}
}

func metText(met *bool) string {
	switch {
	case met == nil:
		return ""
	case *met:
		return "yes"
	}
	return "NO"
}

func budgetSection(r *admin.Report) reportSection {
	s := reportSection{title: "error budget of 28 days", head: []string{"sink", "events", "late", "left", "burn-1h", "burn-6h", "burn-24h"}}
	for i := range r.Sinks {
		if b := r.Sinks[i].Budget; b != nil {
			s.rows = append(s.rows, []string{
				r.Sinks[i].Name, strconv.FormatInt(b.Events, 10), strconv.FormatInt(b.Late, 10), fmt.Sprintf("%.1f%%", 100*b.Left),
				numberText(b.BurnHour), numberText(b.BurnSixHours), numberText(b.BurnDay),
			})
		}
	}
	return s
}

func trendSection(r *admin.Report) reportSection {
	s := reportSection{title: "trend", head: []string{"sink", "hour", "events", "in-time", "p50", "p99", "worst"}}
	for i := range r.Sinks {
		t := &r.Sinks[i].Trend
		if t.Hour.Events+t.HourBefore.Events+t.DayBefore.Events == 0 {
			continue
		}
		for _, h := range []admin.ReportHour{t.Hour, t.HourBefore, t.DayBefore} {
			s.rows = append(s.rows, append([]string{r.Sinks[i].Name, minuteText(h.Start)}, periodCells(&h.ReportPeriod)...))
		}
	}
	if len(s.rows) > 0 {
		s.text = "The last whole hour, the one before, and the same one of the day before."
	}
	return s
}

func hoursSection(r *admin.Report) reportSection {
	s := reportSection{title: "worst hours", head: []string{"sink", "hour", "late", "events", "in-time", "p50", "p99", "worst"}}
	for i := range r.WorstHours {
		h := &r.WorstHours[i]
		s.rows = append(s.rows, append([]string{h.Sink, minuteText(h.Start), strconv.FormatInt(h.Events-h.InTime, 10)}, periodCells(&h.ReportPeriod)...))
	}
	return s
}

// mostFailuresShown is how many runs of failed tries the text has.
const mostFailuresShown = 20

func failuresSection(r *admin.Report) reportSection {
	s := reportSection{title: "failed tries", head: []string{"sink", "from", "to", "tries", "outage", "last-error"}}
	shown := r.Failures
	if len(shown) > mostFailuresShown {
		shown = shown[len(shown)-mostFailuresShown:]
		s.text = fmt.Sprintf("The last %d of %d runs of failed tries.", mostFailuresShown, len(r.Failures))
	}
	for i := range shown {
		f := &shown[i]
		outage := "too short to tell"
		switch {
		case f.Outage != nil && *f.Outage:
			outage = "yes, nothing was accepted"
		case f.Outage != nil:
			outage = fmt.Sprintf("no, accepted in %d of %d minutes", f.AcceptedMinutes, f.Minutes)
		}
		s.rows = append(s.rows, []string{f.Sink, timeText(&f.From), timeText(&f.Until), strconv.FormatInt(f.Tries, 10), outage, shorten(f.LastError, errorWidth)})
	}
	for i := range r.Sinks {
		if sink := &r.Sinks[i]; sink.Condition != "" && sink.Condition != "ok" && sink.Since != nil {
			s.text = strings.TrimSpace(s.text + fmt.Sprintf(" %s is %s since %s.", sink.Name, sink.Condition, timeText(sink.Since)))
		}
	}
	return s
}

func deadSection(r *admin.Report) reportSection {
	s := reportSection{title: "dead letters", head: []string{"sink", "died", "wait-for-a-person"}}
	none := admin.ReportSink{Name: "none", Died: r.NoSinkDead}
	for _, sink := range append(slices.Clone(r.Sinks), none) {
		if knownCount(sink.Died) == "0" && sink.Name == none.Name || sink.Dead != nil && *sink.Dead == 0 && knownCount(sink.Died) == "0" {
			continue
		}
		waiting := knownCount(sink.Dead)
		if sink.DeadAtLeast {
			waiting = "at least " + waiting
		}
		s.rows = append(s.rows, []string{sink.Name, knownCount(sink.Died), waiting})
	}
	return s
}

// mostStagesShown is how many stages the text has.
const mostStagesShown = 5

func stagesSection(r *admin.Report) reportSection {
	s := reportSection{title: "slowest stages", head: []string{"stage", "sink", "busy", "of-the-last-minute"}}
	if r.Stages == nil {
		return s
	}
	s.text = fmt.Sprintf("Of the instance that streams, pid %d on %s, since it began at %s.", r.Stages.PID, clean(r.Stages.Host), timeText(&r.Stages.Since))
	for _, stage := range r.Stages.All[:min(mostStagesShown, len(r.Stages.All))] {
		share := ""
		if stage.BusyMinute != nil {
			share = fmt.Sprintf("%.1f%%", 100**stage.BusyMinute)
		}
		s.rows = append(s.rows, []string{stage.Stage, stage.Sink, tookText(&stage.BusySeconds), share})
	}
	return s
}

// knownCount returns a count, or nothing if nobody knows it.
func knownCount(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

// numberText returns a number with at most four digits behind the point.
func numberText(n float64) string {
	return strings.TrimRight(strings.TrimRight(strconv.FormatFloat(n, 'f', 4, 64), "0"), ".")
}

// tookText returns a time with three digits that count.
func tookText(s *float64) string {
	if s == nil {
		return ""
	}
	d := time.Duration(*s * float64(time.Second))
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= 100*unit {
			return d.Round(unit).String()
		} else if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}
