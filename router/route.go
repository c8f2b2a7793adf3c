package router

import (
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Route sends the events that it matches to sinks.
type Route struct {
	Match Match
	Sinks []Sink
}

// Match is a condition on an event: every list that is not empty must hold a pattern that fits. The zero Match fits all.
// In a pattern * stands for any characters and ? for one; all others stand for themselves.
type Match struct {
	AggregateType, EventType, TenantID []string
}

// Fits says whether e is meant.
func (m *Match) Fits(e *outbox.Event) bool {
	return fitsAny(m.AggregateType, e.AggregateType) && fitsAny(m.EventType, e.EventType) && fitsAny(m.TenantID, e.TenantID)
}

func fitsAny(patterns []string, s string) bool {
	for _, p := range patterns {
		if fits(p, s) {
			return true
		}
	}
	return len(patterns) == 0
}

// fits goes back to the last * only, as what an earlier one took can always be left to it: the time is that of the
// lengths' product at worst.
func fits(pattern, s string) bool {
	star, from := -1, 0
	p, at := 0, 0
	for at < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, at
			p++
		case p < len(pattern) && (pattern[p] == s[at] || pattern[p] == '?'):
			if pattern[p] == '?' {
				at += runeLen(s[at:])
			} else {
				at++
			}
			p++
		case star >= 0:
			from += runeLen(s[from:])
			p, at = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// runeLen is the length of the first character of s.
func runeLen(s string) int {
	for i := range s {
		if i > 0 {
			return i
		}
	}
	return len(s)
}
