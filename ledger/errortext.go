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

// asciiText replaces by question marks what not every encoding has: characters other than ASCII, which LATIN1 for example does not
// all have, NUL, and bytes that are no UTF-8.
func asciiText(s string) string {
	return strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || r == 0 {
			return '?'
		}
		return r
	}, s)
}

// errorText is the text of an error as this database can keep it. asciiText comes first: a question mark takes fewer bytes than the
// character that it stands for, so more of the text is kept.
func (w *BatchWriter) errorText(s string) string {
	if w.narrow {
		s = asciiText(s)
	}
	return cleanText(s)
}
