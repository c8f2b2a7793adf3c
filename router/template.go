package router

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// field is one of the event's fields that a template may name. The payload is opaque and is none of them.
type field byte

const (
	literal field = iota // no field: a text of the template's own
	id
	aggregateType
	aggregateID
	eventType
	eventVersion
	tenantID
	correlationID
	causationID
)

// fieldNames are as in the outbox's own columns, also where a table is mapped.
var fieldNames = [...]string{
	id:            "id",
	aggregateType: "aggregate_type",
	aggregateID:   "aggregate_id",
	eventType:     "event_type",
	eventVersion:  "event_version",
	tenantID:      "tenant_id",
	correlationID: "correlation_id",
	causationID:   "causation_id",
}

func fieldOf(name string) (field, bool) {
	for f := id; int(f) < len(fieldNames); f++ {
		if fieldNames[f] == name {
			return f, true
		}
	}
	return literal, false
}

func (f field) of(e *outbox.Event) string {
	switch f {
	case id:
		return e.ID
	case aggregateType:
		return e.AggregateType
	case aggregateID:
		return e.AggregateID
	case eventType:
		return e.EventType
	case eventVersion:
		return strconv.Itoa(max(e.EventVersion, 1)) // 0 means 1
	case tenantID:
		return e.TenantID
	case correlationID:
		return e.CorrelationID
	case causationID:
		return e.CausationID
	}
	return ""
}

type part struct {
	field field
	text  string // of a literal
}

// Template is a text with fields of the event in braces, such as outbox.event.{aggregate_type}. The zero Template
// expands to nothing. In one that is a URL (of a webhook) the fields' values are escaped: whoever writes an event chooses
// no more of the URL than the place of the field.
type Template struct {
	parts   []part
	isURL   bool
	isTopic bool
	path    urlPath
}

// ParseTopic reads the template of a topic. A topic is a URL only if its template is one. Where the values of fields would make
// one of another, as of {event_type}, its colon is escaped: a webhook would send the event wherever on its host the value says.
func ParseTopic(s string) (Template, error) {
	t, err := ParseTemplate(s)
	t.isTopic = true
	return t, err
}

func isURL(s string) bool { return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") }

// ParseTemplate reads s. Its errors name the field that no event has.
func ParseTemplate(s string) (Template, error) {
	t := Template{isURL: isURL(s)}
	for rest := s; rest != ""; {
		at := strings.IndexAny(rest, "{}")
		if at < 0 {
			at = len(rest)
		}
		if at > 0 {
			t.parts = append(t.parts, part{text: rest[:at]})
			rest = rest[at:]
			continue
		}
		end := strings.IndexByte(rest, '}')
		if end < 1 {
			return Template{}, fmt.Errorf("template%s: unbalanced brace%s", t.quoted("", s), t.quoted("before", rest))
		}
		f, ok := fieldOf(rest[1:end])
		if !ok {
			return Template{}, fmt.Errorf("template%s: unknown field %q; an event has %s",
				t.quoted("", s), rest[1:end], strings.Join(fieldNames[id:], ", "))
		}
		t.parts = append(t.parts, part{field: f})
		rest = rest[end+1:]
	}
	if t.isURL {
		t.path = pathOf(t.parts)
	}
	return t, nil
}

// quoted is a part of the template behind a word; nothing for a URL, which may hold a secret.
func (t *Template) quoted(word, s string) string {
	if t.isURL {
		return ""
	}
	return strings.TrimSuffix(" "+word, " ") + fmt.Sprintf(" %q", s)
}

// Expand gives the text for e. A field that is NULL in the row is left out.
func (t *Template) Expand(e *outbox.Event) string {
	s := t.join(e)
	if t.isTopic && !t.isURL && isURL(s) {
		return strings.Replace(s, ":", "%3A", 1)
	}
	return s
}

func (t *Template) join(e *outbox.Event) string {
	switch len(t.parts) {
	case 0:
		return ""
	case 1:
		return t.expand(0, e)
	}
	var room [128]byte
	b := room[:0]
	for i := range t.parts {
		b = append(b, t.expand(i, e)...)
		if n := t.path.whole[i]; n > 0 && isEmpty(t.parts[i:i+n], e) {
			b = append(b, Unusable...)
		}
	}
	return string(b)
}

func (t *Template) expand(i int, e *outbox.Event) string {
	p := &t.parts[i]
	switch {
	case p.field == literal:
		return p.text
	case i < t.path.parts:
		return segment(p.field.of(e))
	case t.isURL:
		return escape(p.field.of(e))
	}
	return p.field.of(e)
}

// onlyField is the field that alone makes the difference between two expansions.
func (t *Template) onlyField() (field, bool) {
	only := literal
	for _, p := range t.parts {
		switch {
		case p.field == literal || p.field == only:
		case only == literal:
			only = p.field
		default:
			return literal, false
		}
	}
	return only, only != literal
}
