package kafka

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestParsePlacement(t *testing.T) {
	t.Parallel()
	columns := map[string]string{"type": "event_type", "aggregateid": "aggregate_id", "event_type": "aggregate_type"}
	for text, want := range map[string][]headerColumn{
		"":                       nil,
		" ":                      nil,
		"id:header":              {{"id", "id"}},
		"type:header:eventType":  {{"event_type", "eventType"}},
		"type:header":            {{"event_type", "type"}}, // the header has the table's name of it
		" type : Header : a b é": {{"event_type", "a b é"}},
		"event_type:header":      {{"aggregate_type", "event_type"}}, // the table's names come first
		"tenant_id:header:t,aggregateid:header:a,created_at:header": {{"tenant_id", "t"}, {"aggregate_id", "a"}, {"created_at", "created_at"}},
	} {
		got, err := parsePlacement(text, columns)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v %s", text, err, diff)
		}
	}
}

func TestPlacementMistakes(t *testing.T) {
	t.Parallel()
	const columns = "id, aggregate_type, aggregate_id, event_type, event_version, tenant_id, correlation_id, causation_id, created_at"
	for text, want := range map[string]string{
		"type":                          `placement: "type": want column:header or column:header:alias`,
		"id:header,":                    `placement: "": want column:header or column:header:alias`,
		"event_type:header:":            `placement: "event_type:header:": want column:header or column:header:alias`,
		"event_type:header:a:b":         `placement: "event_type:header:a:b": want column:header or column:header:alias`,
		":header:a":                     `placement: ":header:a": want column:header or column:header:alias`,
		"event_type:headers:a":          `placement: "event_type:headers:a": "headers" is no place; write header`,
		"event_type:envelope:eventType": `placement: "event_type:envelope:eventType": the value is the payload, byte for byte, without an envelope; place the column as a header`,
		"p:partition":                   `placement: "p:partition": the key chooses the partition, or the events of an aggregate would not stay in order; leave it out, and set the sink's key`,
		"version:header, payload:header:p": `placement: "version:header": "version" is none of the columns ` + columns + "\n" +
			`placement: "payload:header:p": "payload" is none of the columns ` + columns,
	} {
		if placed, err := parsePlacement(text, nil); err == nil || err.Error() != want {
			t.Errorf("%q: want %s, got %v, %v", text, want, placed, err)
		}
	}
}

func TestFormatMistakes(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]Config{
		`format[0]: "avro" is none of debezium and cloudevents`: {Formats: []string{"avro"}},
		`format[1]: "debezium" is there twice`:                  {Formats: []string{"debezium", "debezium"}},
		`header_encoding: "base64" is none of plain and json` + "\n" + `timestamp: "now" is none of commit and created_at`: {
			HeaderEncoding: "base64", Timestamp: "now",
		},
		`source: CloudEvents need one; write such as /outbox/shop/{aggregate_type}`: {Formats: []string{"cloudevents"}},
		`source: "/outbox/{database}" is no URI reference such as /outbox/shop/{aggregate_type}, the only field that it may have`: {
			Formats: []string{"cloudevents"}, Source: "/outbox/{database}",
		},
		`placement: "event_type:envelope": the value is the payload, byte for byte, without an envelope; place the column as a header`: {
			Placement: "event_type:envelope",
		},
		`header_encoding: has an effect with the format "debezium" only; add that format, or remove this`: {Formats: []string{"cloudevents"}, Source: "/s", HeaderEncoding: "json"},
		`placement: "a" is the name of another header, or none`:                                           {Placement: "event_type:header:a,tenant_id:header:a"},
		`placement: "id" is the name of another header, or none`:                                          {Placement: "event_type:header:id"},
		`placement: "outbox_lsn" is the name of another header, or none`:                                  {Placement: "event_type:header:outbox_lsn", LSNHeader: true},
		`placement: "content-type" is the name of another header, or none`:                                {Placement: "event_type:header:content-type"},
		`placement: "ce_x" is the name of another header, or none`: {
			Formats: []string{"debezium", "cloudevents"}, Source: "/s", Placement: "event_type:header:ce_x",
		},
		`headers_from_metadata[0]: "" is the name of another header, or none`:          {HeadersFromMetadata: []string{""}},
		`headers_from_metadata[0]: "eventType" is the name of another header, or none`: {HeadersFromMetadata: []string{"eventType"}},
		`headers_from_metadata[1]: "user" is the name of another header, or none`:      {HeadersFromMetadata: []string{"user", "user"}},
	} {
		c.Brokers = []string{"a:1"}
		lines := strings.Split(want, "\n")
		_, err := New(c)
		if err == nil {
			t.Errorf("%q was taken", want)
			continue
		}
		for _, line := range lines {
			if !strings.Contains("\n"+err.Error()+"\n", "\n"+line+"\n") {
				t.Errorf("want %s, got %v", line, err)
			}
		}
	}
	for _, c := range []Config{
		{Placement: "id:header"}, {HeadersFromMetadata: []string{"ce_x"}}, {Formats: []string{"cloudevents"}, Source: "s", HeadersFromMetadata: []string{"id"}},
	} {
		c.Brokers = []string{"a:1"}
		if _, err := New(c); err != nil {
			t.Error(err)
		}
	}
}

// FuzzQuote: what is quoted is read as the same text, and JSON needs no more escapes than Jackson makes.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "plain", "\x00\x01\b\t\n\f\r\x1f \"\\/\x7f", "é\u2028👩‍👩‍👧‍👦<&>", "\xff\xed\xa0\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got string
		if err := json.Unmarshal([]byte(quote(s)), &got); err != nil {
			t.Fatalf("%q: %v", quote(s), err)
		}
		want := strings.Map(func(r rune) rune { return r }, s) // U+FFFD for what is no UTF-8
		if got != want || !utf8.ValidString(quote(s)) {
			t.Errorf("%q was read as %q", want, got)
		}
	})
}

func TestQuoteIsJacksons(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": `""`, "OrderPlaced": `"OrderPlaced"`, `a"b\c/d`: `"a\"b\\c/d"`, "\b\t\n\f\r": `"\b\t\n\f\r"`, "\x00\x1b": `"\u0000\u001B"`,
		"\x7fé\u2028<&>": "\"\x7fé\u2028<&>\"",
	} {
		if got := quote(in); got != want {
			t.Errorf("%q: want %s, got %s", in, want, got)
		}
	}
}

// TestBlankIsJavas: String.trim leaves none of it.
func TestBlankIsJavas(t *testing.T) {
	t.Parallel()
	for payload, want := range map[string]bool{"": true, " ": true, "\x00\t\r\n ": true, "x": false, " x ": false, "\u00a0": false, `""`: false, "null": false} {
		if got := isBlank([]byte(payload)); got != want {
			t.Errorf("%q: want %t, got %t", payload, want, got)
		}
	}
	if !isBlank(nil) {
		t.Error("no payload is not blank")
	}
}
