package main

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const backlogFormat = "%-14s %-10s %6s %8s %8s %8s %7s %8s\n"

// backlogs writes how far the unfinished jobs of the sinks are.
func (s *screen) backlogs(sinks []admin.StatusSink) {
	head := false
	for i := range sinks {
		if b := sinks[i].Backlog; b != nil {
			if !head {
				head = true
				s.gap()
				line := fmt.Sprintf(backlogFormat, "BACKLOG", "REASON", "SINCE", "COMPARED", "MISSING", "LEFT", "ROWS/S", "DONE IN")
				s.b.WriteString(s.bold(strings.TrimSuffix(line, "\n")) + "\n")
			}
			s.backlog(sinks[i].Name, b)
		}
	}
}

func (s *screen) backlog(name string, b *monitoring.BacklogReport) {
	name = clean(name)
	if utf8.RuneCountInString(name) > 14 {
		s.b.WriteString(shorten(name, screenWidth) + "\n")
		name = ""
	}
	left, rate, done := "?", "", ""
	if b.Left != nil {
		left = compact(float64(*b.Left))
	}
	if b.Rate != nil {
		rate = compact(*b.Rate)
	}
	if b.SecondsLeft != nil {
		done = secondsText(*b.SecondsLeft)
	}
	line := fmt.Sprintf(backlogFormat, name, shorten(clean(b.Reason), 10), ago(s.now, &b.Filed), compact(float64(b.Walked)), compact(float64(b.Parked)), left, rate, done)
	s.b.WriteString(strings.TrimRight(line, " \n") + "\n")
	if b.WaitsFor != "" {
		s.wrapped("  ", "waits for "+b.WaitsFor)
	}
}

// verify writes what the comparison of the outbox with the ledger has found.
func (s *screen) verify(v *monitoring.VerifyReport) {
	if v == nil {
		return
	}
	s.gap()
	text := "no row was compared yet"
	if !v.UpTo.IsZero() {
		text = "events older than " + ago(s.now, &v.UpTo) + " are compared with the ledger"
	}
	switch n := v.Unaccounted; {
	case n == nil:
		text += ", not yet all of them"
	case *n == 0:
		text += ": none is missing"
	case *n == 1:
		text += ": 1 is missing"
	default:
		text += fmt.Sprintf(": %d are missing", *n)
	}
	s.item("VERIFY", text)
}
