// Package glob has the patterns of routes and of the bus within the process, so that they mean the same: * stands for any
// characters and ? for one; all others stand for themselves, so that every text is a pattern.
package glob

import "strings"

// Match says whether the whole of s fits pattern. It goes back to the last * only, as what an earlier one took can always be left to it: the time is that of the
// lengths' product at worst.
func Match(pattern, s string) bool {
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
