package ledger

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxErrorText is how many bytes the ledger keeps of an error or of a person's reason. Of both in one text (killRows) it keeps
// this many characters.
const maxErrorText = 2000

// cleanText makes a text that may come from anywhere, an error for example, fit for a text column: valid UTF-8 without NUL, of
// maxErrorText bytes at most.
func cleanText(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
	if len(s) <= maxErrorText {
		return s
	}
	s = s[:maxErrorText]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// asciiText replaces every other character by a question mark: an encoding such as LATIN1 does not have all of them.
func asciiText(s string) string {
	return strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII {
			return '?'
		}
		return r
	}, s)
}

// errorText is the text of an error as this database can keep it.
func (t *Tables) errorText(s string) string {
	s = cleanText(s)
	if t.narrow {
		s = asciiText(s)
	}
	return s
}
