package ledger

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

func TestCleanText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"fine":       "fine",
		"a\x00b\xff": "a\ufffdb\ufffd",
	} {
		if got := cleanText(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
	if got := cleanText(strings.Repeat("ü", maxErrorText)); len(got) > maxErrorText || got[len(got)-2:] != "ü" {
		t.Errorf("cut to %d bytes, ending %q", len(got), got[len(got)-2:])
	}
}

// A database in LATIN1 cannot store every character of an error's text. Those that it might not have become question marks.
func TestErrorsForNarrowEncodings(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"400: Müller → Ω": "400: M?ller ? ?",
		"plain":           "plain",
		"a\xffb\x00":      "a?b?",
		"\xff\xfe":        "??",
		// The text is cut to so many bytes of what is stored.
		strings.Repeat("ü", 2*maxErrorText): strings.Repeat("?", maxErrorText),
	} {
		if got := (&BatchWriter{narrow: true}).errorText(in); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func BenchmarkLogRows(b *testing.B) {
	rows := make([]checkpoint.Outcome, 2000)
	for i := range rows {
		rows[i] = checkpoint.Outcome{
			EventID: fmt.Sprintf("0190a5d0-0000-7000-8000-%012x", i), Attempt: 1, StartedAt: time.Now(), CompletedAt: time.Now(),
			Position: checkpoint.Position{LSN: 100, Index: int64(i)},
		}
	}
	batch := []checkpoint.Outcomes{{Rows: rows}}
	t := &BatchWriter{epoch: 1, uuidIDs: true}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _, _ = t.logRows(buf[:0], batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2000, "ns/row")
}
