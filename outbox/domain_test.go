package outbox

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"
)

// full is a domain event with all that one may have.
type full struct {
	payload  any
	metadata map[string]any
}

var occurred = time.Date(2026, 11, 24, 3, 58, 21, 0, time.UTC)

func (full) EventID() string            { return "01970000-0000-7000-8000-00000000000a" }
func (full) AggregateType() string      { return "user" }
func (full) AggregateID() string        { return "1" }
func (full) EventType() string          { return "user.registered" }
func (full) EventVersion() int          { return 2 }
func (f full) Payload() any             { return f.payload }
func (f full) Metadata() map[string]any { return f.metadata }
func (full) OccurredAt() time.Time      { return occurred }
func (full) TenantID() string           { return "tenant" }
func (full) CorrelationID() string      { return "correlation" }
func (full) CausationID() string        { return "causation" }

// plain has nothing beyond the interface.
type plain struct{ DomainEvent }

func TestEventsOf(t *testing.T) {
	t.Parallel()
	want := Event{
		ID: "01970000-0000-7000-8000-00000000000a", AggregateType: "user", AggregateID: "1", EventType: "user.registered", EventVersion: 2,
		CreatedAt: occurred, TenantID: "tenant", CorrelationID: "correlation", CausationID: "causation",
	}
	with := func(payload, metadata string) Event {
		e := want
		e.Payload = []byte(payload)
		if metadata != "" {
			e.Metadata = []byte(metadata)
		}
		return e
	}
	without := with("1", "")
	without.TenantID, without.CorrelationID, without.CausationID = "", "", ""
	stored := with(` [1, 2] `, `{"a" : 1}`)
	stored.MaxRetries = new(0)

	list := append([]DomainEvent{
		full{payload: struct {
			Email string `json:"email"`
		}{"a@b"}},
		full{payload: []byte(` {"a":1} `), metadata: map[string]any{}},
		full{payload: json.RawMessage(`2.50`), metadata: map[string]any{"a": 1, "b": "c"}},
		full{payload: "text"},
		full{},
		plain{full{payload: 1}},
	}, DomainEvents(stored)...)
	got, err := EventsOf(list)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Event{
		with(`{"email":"a@b"}`, ""), with(` {"a":1} `, "{}"), with("2.50", `{"a":1,"b":"c"}`), with(`"text"`, ""), with("null", ""), without, stored,
	} {
		if !reflect.DeepEqual(got[i], want) {
			t.Errorf("event %d:\ngot  %+v\nwant %+v", i, got[i], want)
		}
	}
	// A row that is adapted by somebody who does not know it is one says the same.
	adapted, err := EventsOf([]DomainEvent{plain{DomainEvents(with("[1]", `{"a":1}`))[0]}})
	same := with("[1]", `{"a":1}`)
	same.TenantID, same.CorrelationID, same.CausationID = "", "", ""
	if err != nil || !reflect.DeepEqual(adapted[0], same) {
		t.Errorf("got %+v, %v", adapted, err)
	}
}

func TestEventsOfMistakes(t *testing.T) {
	t.Parallel()
	_, err := EventsOf([]DomainEvent{
		nil, full{}, full{payload: func() {}}, full{metadata: map[string]any{"a": math.NaN()}},
	})
	want := "events[0] is nil\nevents[2].Payload: json: unsupported type: func()\nevents[3].Metadata: json: unsupported value: NaN"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
