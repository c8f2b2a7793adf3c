package connector

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

func TestOddMetadataIsSaidOnce(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&text, nil))
	var odd oddMetadata
	for _, metadata := range []string{"", "null", " null\n", "{}", " \n{}", `{"a":1}`, "  "} {
		odd.look(&outbox.Event{ID: "fine", Metadata: []byte(metadata)}, logger)
	}
	if text.Len() > 0 {
		t.Errorf("an object, null or nothing was logged: %s", &text)
	}
	for _, metadata := range []string{`["secret"]`, `"secret"`, "7"} {
		odd.look(&outbox.Event{ID: "first", EventType: "order.placed", Metadata: []byte(metadata)}, logger)
	}
	if n := strings.Count(text.String(), "\n"); n != 1 {
		t.Errorf("the log has %d lines, want one: %s", n, &text)
	}
	for _, want := range []string{"level=WARN", "event_id=first", "event_type=order.placed"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the log has no %s: %s", want, &text)
		}
	}
	if strings.Contains(text.String(), "secret") {
		t.Errorf("the log has the metadata themselves: %s", &text)
	}
}

func TestOddMetadata(t *testing.T) {
	t.Parallel()
	for metadata, want := range map[string]bool{
		`[1]`: true, `"{"`: true, "7": true, "true": true, " \n[]": true, "nothing": true,
		"null": false, "{": false, "": false,
	} {
		if got := isOdd([]byte(metadata)); got != want {
			t.Errorf("isOdd(%q) is %v, want %v", metadata, got, want)
		}
	}
}
