package eventbus

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

const (
	// maxSubject is the longest subject. Together with the reply subject it fits into the longest line that a server
	// accepts (max_control_line, 4 KB). A server closes the connection of a client that sends a longer line.
	maxSubject = 2048

	headerID             = "Nats-Msg-Id"
	headerExpectedStream = "Nats-Expected-Stream"
	headerContentType    = "content-type"
	headerTraceParent    = "traceparent"
	headerTraceState     = "tracestate"
	attributePrefix      = "ce-"
)

// checkSubject returns an error if subject cannot be published to. A subject may come from columns of an event, so
// checkSubject also refuses the server's own subjects: messages to these can delete streams.
func checkSubject(subject string) error {
	if err := checkTokens(subject); err != nil {
		return err
	}
	if first, _, _ := strings.Cut(subject, "."); first[0] == '$' || first == "_INBOX" {
		return fmt.Errorf("subject %q is one of the server's own", subject)
	}
	return nil
}

func checkTokens(subject string) error {
	switch {
	case subject == "":
		return errors.New("the subject is empty")
	case len(subject) > maxSubject:
		return fmt.Errorf("the subject has %d bytes, at most %d are sent", len(subject), maxSubject)
	case subject[0] == '.' || subject[len(subject)-1] == '.' || strings.Contains(subject, ".."):
		return fmt.Errorf("subject %q has an empty token", subject)
	case strings.ContainsFunc(subject, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '*' || r == '>' }):
		return fmt.Errorf("subject %q has a space, a control character, * or >", subject)
	}
	return nil
}

// headers returns Nats-Msg-Id and the attributes of CloudEvents in binary mode, as their binding for NATS says. An event
// without a payload has no content type, by which it differs from one with an empty payload.
func (s *Sink) headers(m *sinks.Message) nats.Header {
	const most = 20
	h := make(nats.Header, most)
	values := make([]string, 0, most) // one allocation for all values
	set := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	set(headerID, m.UniqueID())
	if s.stream != "" {
		set(headerExpectedStream, s.stream)
	}
	c := format.ContextOf(m.Event.Metadata).Plain()
	for name, value := range s.cloudEvents.Attributes(m, c) {
		set(attributePrefix+name, format.HeaderValue(value))
	}
	if m.Event.Payload != nil {
		set(headerContentType, s.cloudEvents.ContentType(m.Event, c))
	}
	if c.TraceParent != "" {
		set(headerTraceParent, c.TraceParent)
	}
	if c.TraceState != "" {
		set(headerTraceState, c.TraceState)
	}
	return h
}

// size returns the size of headers and body, which the server compares with its max_payload.
func size(m *nats.Msg) int {
	n := len("NATS/1.0\r\n\r\n") + len(m.Data)
	for name, values := range m.Header {
		for _, v := range values {
			n += len(name) + len(": \r\n") + len(v)
		}
	}
	return n
}
