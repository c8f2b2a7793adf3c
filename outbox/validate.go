package outbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

const (
	// maxTextBytes is uniform for the sake of simplicity. What asks for a limit are the indexes: an entry, such as
	// aggregate type and id together, takes at most 2,704 bytes.
	maxTextBytes = 1024
	// maxMetadataBytes keeps a jsonb, which can take eight times the bytes of its text, within its limit of 256 MiB.
	maxMetadataBytes = 16 << 20
	// maxEventBytes keeps a message to the server within its limit of 1 GiB, though escaping may double it.
	maxEventBytes = 256 << 20
)

// validate returns all mistakes of all events. What it accepts, the columns and indexes of event_outbox accept.
func validate(events []Event) error {
	var c check
	ids := make(map[uuid.UUID]int)
	for c.index = range events {
		e := &events[c.index]
		c.id(ids, e.ID)
		c.required("AggregateType", e.AggregateType)
		c.required("AggregateID", e.AggregateID)
		c.required("EventType", e.EventType)
		c.text("TenantID", e.TenantID)
		c.text("CorrelationID", e.CorrelationID)
		c.text("CausationID", e.CausationID)
		c.number("EventVersion", e.EventVersion)
		if e.MaxRetries != nil {
			c.number("MaxRetries", *e.MaxRetries)
		}
		if year := e.CreatedAt.UTC().Year(); year < 1 || year > 9999 {
			c.wrong("CreatedAt", "is not within the years 1 and 9999")
		}
		if size := e.size(); size > maxEventBytes {
			c.wrong("Payload", fmt.Sprintf("makes an event of %d bytes, more than %d", size, maxEventBytes))
			continue // reading on would take long
		}
		c.payload(e.Payload)
		c.metadata(e.Metadata)
	}
	return errors.Join(c.mistakes...)
}

// size is how many bytes the event's values take.
func (e *Event) size() int {
	return len(e.ID) + len(e.AggregateType) + len(e.AggregateID) + len(e.EventType) + len(e.Payload) + len(e.Metadata) +
		len(e.TenantID) + len(e.CorrelationID) + len(e.CausationID)
}

// check collects mistakes. Their texts never contain a value, because an event may hold secrets.
type check struct {
	index    int
	mistakes []error
}

func (c *check) wrong(field, mistake string) {
	c.mistakes = append(c.mistakes, fmt.Errorf("events[%d].%s: %s", c.index, field, mistake))
}

func (c *check) id(seen map[uuid.UUID]int, s string) {
	if s == "" {
		return
	}
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 { // Parse knows other ways to write one
		c.wrong("ID", "is not a uuid with hyphens")
		return
	}
	if id == uuid.Nil {
		c.wrong("ID", "is the nil uuid")
		return
	}
	if first, ok := seen[id]; ok {
		c.wrong("ID", fmt.Sprintf("is the same as that of events[%d]", first))
		return
	}
	seen[id] = c.index
}

func (c *check) required(field, s string) {
	if s == "" {
		c.wrong(field, "is empty")
		return
	}
	c.text(field, s)
}

func (c *check) text(field, s string) {
	if len(s) > maxTextBytes {
		c.wrong(field, fmt.Sprintf("has %d bytes, more than %d", len(s), maxTextBytes))
	}
	if strings.IndexByte(s, 0) >= 0 {
		c.wrong(field, "holds a NUL")
	}
	if !utf8.ValidString(s) {
		c.wrong(field, "is not UTF-8")
	}
}

func (c *check) number(field string, n int) {
	if n < 0 {
		c.wrong(field, "is negative")
	} else if n > math.MaxInt32 {
		c.wrong(field, fmt.Sprintf("is more than %d", math.MaxInt32))
	}
}

func (c *check) payload(b []byte) {
	switch {
	case len(b) == 0:
		c.wrong("Payload", "is empty")
	case !utf8.Valid(b):
		c.wrong("Payload", "is not UTF-8")
	case !json.Valid(b): // accepts what json accepts, down to a depth of 10,000, where PostgreSQL's stack still suffices
		c.wrong("Payload", "is not JSON")
	}
}

func (c *check) metadata(b []byte) {
	switch {
	case len(b) == 0:
	case len(b) > maxMetadataBytes:
		c.wrong("Metadata", fmt.Sprintf("has %d bytes, more than %d", len(b), maxMetadataBytes))
	case !utf8.Valid(b):
		c.wrong("Metadata", "is not UTF-8")
	case !json.Valid(b):
		c.wrong("Metadata", "is not JSON")
	case bytes.TrimLeft(b, " \t\r\n")[0] != '{':
		c.wrong("Metadata", "is not a JSON object")
	default:
		if mistake := unfitForJSONB(b); mistake != "" {
			c.wrong("Metadata", mistake)
		}
	}
}

// unfitForJSONB says why jsonb refuses a valid JSON text: unlike json, it keeps strings as text and numbers as numeric.
// It is "" if jsonb takes it.
func unfitForJSONB(b []byte) string {
	for len(b) > 0 {
		switch c := b[0]; {
		case c == '"':
			n, mistake := stringEnd(b)
			if mistake != "" {
				return mistake
			}
			b = b[n:]
		case c == '-' || isDigit(c):
			n := len(b) - len(bytes.TrimLeft(b, "+-.0123456789eE"))
			if !fitsNumeric(b[:n]) {
				return "has a number that is too large, too small or too long"
			}
			b = b[n:]
		default:
			b = b[1:]
		}
	}
	return ""
}

// stringEnd is the length of the JSON string that b begins with.
func stringEnd(b []byte) (n int, mistake string) {
	for n = 1; b[n] != '"'; n++ {
		if b[n] != '\\' {
			continue
		}
		n++
		if b[n] != 'u' {
			continue
		}
		switch r := hex4(b[n+1:]); {
		case r == 0:
			return 0, `has a \u0000`
		case isLow(r):
			return 0, "has an unpaired surrogate"
		case isHigh(r):
			if b[n+5] != '\\' || b[n+6] != 'u' || !isLow(hex4(b[n+7:])) {
				return 0, "has an unpaired surrogate"
			}
			n += 10
		default:
			n += 4
		}
	}
	return n + 1, ""
}

func isHigh(r rune) bool { return 0xD800 <= r && r < 0xDC00 }
func isLow(r rune) bool  { return 0xDC00 <= r && r < 0xE000 }

// hex4 reads the four digits of a \u escape, which valid JSON has.
func hex4(b []byte) rune {
	var r rune
	for _, c := range b[:4] {
		switch {
		case isDigit(c):
			r = r<<4 | rune(c-'0')
		default:
			r = r<<4 | rune(c|0x20-'a'+10)
		}
	}
	return r
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// fitsNumeric stays well within the 131,072 digits before and 16,383 behind the point that numeric has.
func fitsNumeric(number []byte) bool {
	exponent := 0
	if e := bytes.IndexAny(number, "eE"); e >= 0 {
		exponent = len(bytes.TrimLeft(number[e+1:], "+-"))
	}
	return len(number) <= 1000 && exponent <= 4 // digits
}
