package webhook

import (
	"net/url"
	"strings"
)

// keepsItsPath tells whether every server takes an escaped path for the segments that it is written as: none is empty but the
// last one, none consists of dots, and none has a control character, which stands for a value that the router could not use
// (router.Unusable). Nor is there a backslash, which some servers take for a slash. Servers look at a path after unescaping it,
// and cut off what follows a semicolon.
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
