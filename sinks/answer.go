package sinks

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxAnswer is how many bytes of a destination's answer WithAnswer keeps.
const MaxAnswer = 1 << 10

// WithAnswer adds to err the text with which the destination has refused a message. The class and the text of err stay the same.
// The answer may contain what was sent, so it is stored with the message, for a person, and is never logged. The sink takes its
// own secrets out of it before.
//
// The answer is made printable: valid UTF-8, a space for each run of spaces and line ends, and U+FFFD for everything that a
// terminal could obey. Of a longer one the first MaxAnswer bytes are kept.
func WithAnswer(answer string, err error) error {
	if answer = printable(answer); answer == "" {
		return err
	}
	return answerError{err, answer}
}

// Answer returns the answer that WithAnswer has added to err, and "" if there is none.
func Answer(err error) string {
	a, _ := errors.AsType[answerError](err)
	return a.answer
}

type answerError struct {
	error
	answer string
}

func (e answerError) Unwrap() error { return e.error }

func printable(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, string(unicode.ReplacementChar))), " ")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
	if len(s) <= MaxAnswer {
		return s
	}
	cut := MaxAnswer
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}
