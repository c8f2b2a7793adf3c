package main

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

// An event without a time shows none, and an outbox that could not be read is said.
func TestEventText(t *testing.T) {
	t.Parallel()
	text := eventText(admin.EventDetails{Event: &admin.Event{ID: "7", AggregateType: "order", AggregateID: "1", EventType: "made", Status: "pending"}})
	if fields := strings.Fields(text); !strings.HasSuffix(text, "\n") || strings.Join(fields[8:], " ") != "7 made order/1 - pending - 0 -" {
		t.Errorf("%q", text)
	}
	text = eventText(admin.EventDetails{EventError: "permission denied\x1b[0m", Log: []admin.Try{{EventID: "7", Sink: "a", Status: "delivered"}}})
	if !strings.HasPrefix(text, "The outbox could not be read: permission denied") || strings.Contains(text, "\x1b") || !strings.Contains(text, "delivered") {
		t.Errorf("%q", text)
	}
}
