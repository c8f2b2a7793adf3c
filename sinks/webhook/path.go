package webhook

import (
	"net/url"
	"strings"
)

// keepsItsPath reports whether every server reads an escaped path as the segments that are written there. No segment
// may be empty, except for the last one. None may consist of dots only. None may contain a control character, which
// stands for a value that the router could not use (router.Unusable), or a backslash, which some servers take for a
// slash. Servers unescape a path before they evaluate it, and cut off what follows a semicolon, so keepsItsPath does
// too.
func keepsItsPath(escaped string) bool {
	text, err := url.PathUnescape(escaped)
	if err != nil || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return false
	}
	segments := strings.Split(escaped, "/")
	for i, segment := range segments {
		if segment == "" && i > 0 && i < len(segments)-1 {
			return false
		}
	}
	for segment := range strings.SplitSeq(text, "/") {
		name, _, _ := strings.Cut(segment, ";")
		if name != "" && strings.Trim(name, ". ") == "" {
			return false
		}
	}
	return true
}
