package sinks

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// TestAnswer: an answer goes with an error, and changes neither its text nor its class.
func TestAnswer(t *testing.T) {
	t.Parallel()
	cause := fmt.Errorf("%w: status 429", ErrUnavailable)
	err := fmt.Errorf("partner: %w", After(time.Second, WithAnswer("too many", cause)))
	if Answer(err) != "too many" || RetryAfter(err) != time.Second || !errors.Is(err, ErrUnavailable) {
		t.Errorf("answer %q, %s, %v", Answer(err), RetryAfter(err), err)
	}
	if text := err.Error(); text != "partner: unavailable: status 429" {
		t.Errorf("text %q", text)
	}
	for _, err := range []error{nil, cause} {
		if Answer(err) != "" {
			t.Errorf("%v has an answer", err)
		}
	}
	if err := WithAnswer(" \n", cause); err != cause { //nolint:errorlint // the very same
		t.Errorf("an empty answer made %v", err)
	}
}

// TestAnswerIsPrintable: whatever a destination answers, the text can be stored and shown on a terminal.
func TestAnswerIsPrintable(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		`{"error": "no such field"}`:         `{"error": "no such field"}`,
		"\n a\r\n\tb  c\u00a0d\u2028e ":      "a b c d e",
		"\x1b[31mred\x00\x07":                "\ufffd[31mred\ufffd\ufffd",
		"\xff\xfe\x80a":                      "\ufffda",
		"a\u202eb\ue000":                     "a\ufffdb\ufffd", // turns the direction of writing; means nothing
		strings.Repeat("x", 2000):            strings.Repeat("x", MaxAnswer),
		"x" + strings.Repeat("ü", MaxAnswer): "x" + strings.Repeat("ü", MaxAnswer/2-1),
		strings.Repeat("\x01", MaxAnswer):    strings.Repeat("\ufffd", MaxAnswer/3),
	} {
		got := Answer(WithAnswer(answer, ErrPermanent))
		if got != want || !utf8.ValidString(got) || len(got) > MaxAnswer {
			t.Errorf("%q: got %q, want %q", answer, got, want)
		}
	}
}
