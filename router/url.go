package router

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Unusable stands in the path of a URL for a value that could change its structure. It is the escaped character NUL, which no
// value passes as; a sink refuses such a URL.
//
// Servers differ in what they do before they look at a path: they unescape it, some of them twice, take \ for /, cut
// off what follows a semicolon, leave out empty segments, and go up at dots. So a value in a path may only have
// characters that mean nothing anywhere, and may not leave a segment empty. (Segments of dots alone are the sink's to
// refuse: the template's own text may have a part in them.)
const Unusable = "%00"

// urlPath is where a URL's template has its path.
type urlPath struct {
	parts int         // before the query
	whole map[int]int // runs of fields that are all of a segment: their number, by where they begin
}

func pathOf(parts []part) urlPath {
	p := urlPath{whole: map[int]int{}}
	for ; p.parts < len(parts); p.parts++ {
		i := p.parts
		text := parts[i].text
		if strings.ContainsAny(text, "?#") {
			return p
		}
		end := i + 1
		for end < len(parts) && parts[end].field != literal {
			end++
		}
		if strings.HasSuffix(text, "/") && end > i+1 && (end == len(parts) || strings.IndexByte("/?#", parts[end].text[0]) >= 0) {
			p.whole[i+1] = end - i - 1
		}
	}
	return p
}

func isEmpty(fields []part, e *outbox.Event) bool {
	for _, p := range fields {
		if p.field.of(e) != "" {
			return false
		}
	}
	return true
}

// segment is a value as it stands in a path.
func segment(value string) string {
	if !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return !isHarmless(r) }) {
		return Unusable
	}
	return escape(value)
}

// isHarmless: of other characters than ASCII's these are letters, marks and decimal digits. What some servers turn into
// a dot or a slash is punctuation, a symbol or another kind of number.
func isHarmless(r rune) bool {
	if r > unicode.MaxASCII {
		return r != unicode.ReplacementChar && unicode.In(r, unicode.L, unicode.M, unicode.Nd)
	}
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" -._~!$&'()*+,=:@", r)
}

// escape makes s one segment of a path, or one value of a query: all but RFC 3986's unreserved characters as %XX.
func escape(s string) string {
	var out strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}
