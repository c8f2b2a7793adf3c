package connector

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// An event that was parked and read again is the same as before.
func TestStoredEvent(t *testing.T) {
	t.Parallel()
	three := 3
	for _, metadata := range []string{"", `{"a": 1,  "b":"<&>"}`, ` {"a":1}`, "no json", `"text"`, "null"} {
		e := &outbox.Event{
			ID: "i", AggregateType: "t<", AggregateID: "a", EventType: "e", EventVersion: 2, Payload: []byte("\x00p"), Metadata: []byte(metadata),
			ContentType: "application/octet-stream",
			CreatedAt:   time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC), MaxRetries: &three, TenantID: "x", CorrelationID: "c", CausationID: "d",
		}
		committed := e.CreatedAt.Add(time.Second)
		got, at, err := storedAndRead(e, committed)
		if err != nil {
			t.Fatal(err)
		}
		if metadata == "" {
			e.Metadata = nil
		}
		if diff := cmp.Diff(e, got); diff != "" || !at.Equal(committed) {
			t.Errorf("metadata %q: committed %s\n%s", metadata, at, diff)
		}
	}
	if got, _, err := storedAndRead(&outbox.Event{}, time.Time{}); err != nil || !cmp.Equal(got, &outbox.Event{}) {
		t.Errorf("the empty event became %+v, %v", got, err)
	}
}

// storedAndRead parks an event in memory and reads it again.
func storedAndRead(e *outbox.Event, committed time.Time) (*outbox.Event, time.Time, error) {
	row := ledger.ParkedDelivery{Payload: e.Payload}
	if err := json.Unmarshal(storedEvent(e, committed).Encode(), &row.Event); err != nil {
		return nil, time.Time{}, err
	}
	got, at := eventOf(&row)
	return got, at, nil
}
