package router

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// field is one of the event's fields that a template may name. The payload is opaque and is none of them.
type field byte

const (
	literal field = iota // not a field, but a piece of the template's own text
	id
	aggregateType
	aggregateID
	eventType
	eventVersion
	tenantID
	correlationID
	causationID
)

// fieldNames are the names of the columns of event_outbox. Templates use them for a mapped table too.
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
		return strconv.Itoa(max(e.EventVersion, 1)) // 0: the version is not set, and then it is 1
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
	text  string // if field is literal
}

// Template is a text with fields of the event in braces, such as outbox.event.{aggregate_type}. The zero Template
// expands to an empty text. If the template is a URL (of a webhook), the values of fields are escaped, so that somebody
// who writes an event can choose only what stands in the place of the field, and no other part of the URL.
type Template struct {
	parts   []part
	isURL   bool
	isTopic bool
	path    urlPath
}

// ParseTopic reads the template of a topic. A topic is a URL only if its template is one. If the values of fields make
// another topic look like a URL, as {event_type} could, Expand escapes the colon. Without this, a webhook would send
// the event to whatever path on its host the value names.
func ParseTopic(s string) (Template, error) {
	t, err := ParseTemplate(s)
	t.isTopic = true
	return t, err
}

func isURL(s string) bool { return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") }

// ParseTemplate reads a template. If it names a field that no event has, the error says which.
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

// quoted returns a word and a quoted part of the template, for an error message. It returns nothing if the template is
// a URL, which may contain a secret.
func (t *Template) quoted(word, s string) string {
	if t.isURL {
		return ""
	}
	return strings.TrimSuffix(" "+word, " ") + fmt.Sprintf(" %q", s)
}

// Expand returns the text for e. A field that is NULL in the row is left out.
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
		return t.expandPart(0, e)
	}
	var room [128]byte
	b := room[:0]
	for i := range t.parts {
		b = append(b, t.expandPart(i, e)...)
		if n := t.path.whole[i]; n > 0 && isEmpty(t.parts[i:i+n], e) {
			b = append(b, Unusable...)
		}
	}
	return string(b)
}

func (t *Template) expandPart(i int, e *outbox.Event) string {
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

// Constant returns the text that Expand returns for every event, if the template names no field.
func (t *Template) Constant() (text string, ok bool) {
	for _, p := range t.parts {
		if p.field != literal {
			return "", false
		}
		text += p.text
	}
	return text, true
}

// Text returns the template as it was written. If it is a URL, it may contain a secret.
func (t *Template) Text() string {
	var b strings.Builder
	for _, p := range t.parts {
		if p.field == literal {
			b.WriteString(p.text)
		} else {
			b.WriteString("{" + fieldNames[p.field] + "}")
		}
	}
	return b.String()
}

// Equal reports whether two templates expand to the same text for every event.
func (t *Template) Equal(other Template) bool {
	return t.isTopic == other.isTopic && slices.Equal(t.parts, other.parts)
}

// onlyField returns the field on which alone the result of Expand depends, if there is exactly one.
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
