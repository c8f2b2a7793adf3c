package outbox

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// valid is an event with nothing but what it must have.
func valid() Event {
	return Event{AggregateType: "order", AggregateID: "1", EventType: "order.placed", Payload: []byte(`{}`)}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	const id = "01970000-0000-7000-8000-00000000000a"
	long := strings.Repeat("x", maxTextBytes+1)
	for _, test := range []struct {
		name   string
		change func(*Event)
		want   string // without "events[0]."
	}{
		{"only what is needed", func(*Event) {}, ""},
		{"everything", func(e *Event) {
			*e = Event{
				ID: id, AggregateType: "Bestellung/Übung", AggregateID: "日本-1 \n", EventType: strings.Repeat("x", maxTextBytes),
				EventVersion: math.MaxInt32, Payload: []byte(` [1] `), Metadata: []byte(" \t\r\n{\"a\": 1}"), CreatedAt: time.Now(),
				MaxRetries: new(math.MaxInt32), TenantID: "t", CorrelationID: "c", CausationID: "d",
			}
		}, ""},
		{"nothing", func(e *Event) { *e = Event{} }, "AggregateType: is empty|AggregateID: is empty|EventType: is empty|Payload: is empty"},

		{"id in upper case", func(e *Event) { e.ID = strings.ToUpper(id) }, ""},
		{"id of another kind", func(e *Event) { e.ID = "42" }, "ID: is not a uuid with hyphens"},
		{"id with braces", func(e *Event) { e.ID = "{" + id + "}" }, "ID: is not a uuid with hyphens"},
		{"id without hyphens", func(e *Event) { e.ID = strings.ReplaceAll(id, "-", "") }, "ID: is not a uuid with hyphens"},
		{"id as a URN", func(e *Event) { e.ID = "urn:uuid:" + id }, "ID: is not a uuid with hyphens"},
		{"id with a wrong digit", func(e *Event) { e.ID = "g" + id[1:] }, "ID: is not a uuid with hyphens"},
		{"nil id", func(e *Event) { e.ID = "00000000-0000-0000-0000-000000000000" }, "ID: is the nil uuid"},

		{"text too long", func(e *Event) { e.AggregateID, e.TenantID = long, long }, "AggregateID: has 1025 bytes, more than 1024|TenantID: has 1025 bytes, more than 1024"},
		{"NUL", func(e *Event) { e.AggregateType, e.CorrelationID = "a\x00", "\x00" }, "AggregateType: holds a NUL|CorrelationID: holds a NUL"},
		{"not UTF-8", func(e *Event) { e.EventType, e.CausationID = "\xff", "\xed\xa0\x80" }, "EventType: is not UTF-8|CausationID: is not UTF-8"},
		{"several of one text", func(e *Event) { e.TenantID = long + "\x00\xff" }, "TenantID: has 1027 bytes, more than 1024|TenantID: holds a NUL|TenantID: is not UTF-8"},

		{"negative numbers", func(e *Event) { e.EventVersion, e.MaxRetries = -1, new(-1) }, "EventVersion: is negative|MaxRetries: is negative"},
		{"large numbers", func(e *Event) { e.EventVersion, e.MaxRetries = math.MaxInt32+1, new(math.MaxInt) }, "EventVersion: is more than 2147483647|MaxRetries: is more than 2147483647"},
		{"no retries", func(e *Event) { e.MaxRetries = new(0) }, ""},

		{"first time", func(e *Event) { e.CreatedAt = time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC) }, ""},
		{"last time", func(e *Event) { e.CreatedAt = time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC) }, ""},
		{"before the first time", func(e *Event) { e.CreatedAt = time.Date(1, 1, 1, 0, 0, 0, 0, time.FixedZone("", 1)) }, "CreatedAt: is not within the years 1 and 9999"},
		{"after the last time", func(e *Event) { e.CreatedAt = time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -1)) }, "CreatedAt: is not within the years 1 and 9999"},

		{"payload of white space", func(e *Event) { e.Payload = []byte(" \n") }, "Payload: is not JSON"},
		{"payload with a comma", func(e *Event) { e.Payload = []byte(`{"a":1,}`) }, "Payload: is not JSON"},
		{"two payloads", func(e *Event) { e.Payload = []byte(`{}{}`) }, "Payload: is not JSON"},
		{"payload with a NUL", func(e *Event) { e.Payload = []byte("\"\x00\"") }, "Payload: is not JSON"},
		{"payload with an escaped NUL", func(e *Event) { e.Payload = []byte(`"\u0000"`) }, ""},
		{"payload not UTF-8", func(e *Event) { e.Payload = []byte("\"\xff\"") }, "Payload: is not UTF-8"},
		{"payload with a byte order mark", func(e *Event) { e.Payload = []byte("\ufeff{}") }, "Payload: is not JSON"},
		{"deep payload", func(e *Event) { e.Payload = nested(10000) }, ""},
		{"too deep payload", func(e *Event) { e.Payload = nested(10001) }, "Payload: is not JSON"},
		{"event too large", func(e *Event) { e.Payload = make([]byte, maxEventBytes) }, "Payload: makes an event of 268435474 bytes, more than 268435456"},

		{"metadata that is null", func(e *Event) { e.Metadata = []byte("null") }, "Metadata: is not a JSON object"},
		{"metadata that is a list", func(e *Event) { e.Metadata = []byte(" [{}]") }, "Metadata: is not a JSON object"},
		{"metadata that is no JSON", func(e *Event) { e.Metadata = []byte("{") }, "Metadata: is not JSON"},
		{"metadata not UTF-8", func(e *Event) { e.Metadata = []byte("{\"\xff\":1}") }, "Metadata: is not UTF-8"},
		{"metadata too large", func(e *Event) { e.Metadata = make([]byte, maxMetadataBytes+1) }, "Metadata: has 16777217 bytes, more than 16777216"},
		{"metadata unfit", func(e *Event) { e.Metadata = []byte(`{"a": 1e99999}`) }, "Metadata: has a number that is too large, too small or too long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e := valid()
			test.change(&e)
			want := ""
			if test.want != "" {
				want = "events[0]." + strings.ReplaceAll(test.want, "|", "\nevents[0].")
			}
			if got := text(validate([]Event{e})); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// All mistakes are told, each with the index of its event, and none tells what is in it.
func TestValidateMany(t *testing.T) {
	t.Parallel()
	const id = "01970000-0000-7000-8000-00000000000a"
	events := slices.Repeat([]Event{valid()}, 5)
	events[1].AggregateID, events[1].Payload, events[1].ID = "", []byte("secret"), id
	events[3].EventVersion, events[3].TenantID = -5, "secret\x00"
	events[4].ID, events[4].Metadata = strings.ToUpper(id), []byte(`"secret"`)
	want := `events[1].AggregateID: is empty
events[1].Payload: is not JSON
events[3].TenantID: holds a NUL
events[3].EventVersion: is negative
events[4].ID: is the same as that of events[1]
events[4].Metadata: is not a JSON object`
	if got := text(validate(events)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestUnfitForJSONB(t *testing.T) {
	t.Parallel()
	const number, surrogate, nul = "has a number that is too large, too small or too long", "has an unpaired surrogate", `has a \u0000`
	for _, test := range []struct{ json, want string }{
		{`{}`, ""},
		{`{"a": [1, -1.5e+10, 0, true, false, null, ""], "b": {"c\\": "\"1e99999\""}}`, ""},
		{`1e9999`, ""},
		{`-1.5E-9999`, ""},
		{`[1,1e10000]`, number},
		{`{"a":-1E-10000}`, number},
		{strings.Repeat("9", 1000), ""},
		{strings.Repeat("9", 1001), number},
		{`"\u0000"`, nul},
		{`{"\u0000":1}`, nul},
		{`"\\u0000"`, ""},
		{`"\\\u0000"`, nul},
		{`"\u0001\u00e9\uFFFF\u005C"`, ""},
		{`"\ud83d\ude42"`, ""},
		{`"\uDBFF\uDFFF\uD800\uDC00"`, ""},
		{`"\ud83d"`, surrogate},
		{`"\ud83dx"`, surrogate},
		{`"\ud83d\n"`, surrogate},
		{`"\ud83d\u0041"`, surrogate},
		{`"\ud83d\ud83d\ude42"`, surrogate},
		{`"\ude42\ud83d"`, surrogate},
		{`"\ud83d\\ude42"`, surrogate},
	} {
		if got := unfitForJSONB([]byte(test.json)); got != test.want {
			t.Errorf("%.40s: got %q, want %q", test.json, got, test.want)
		}
	}
}

func nested(depth int) []byte {
	return fmt.Appendf(nil, "%s%s", strings.Repeat("[", depth), strings.Repeat("]", depth))
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
