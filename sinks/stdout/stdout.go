// Package stdout is the sink that prints each event as a line of JSON, for a person, or for another program that reads
// them through a pipe. An event is accepted when the writer has taken its line. What becomes of it behind a pipe is not
// known.
package stdout

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// Sink writes to one writer, which it does not close.
type Sink struct {
	// running is the done channel of the context of the Write that runs, and nil while none runs.
	running atomic.Pointer[<-chan struct{}]

	mu sync.Mutex // held during a Write, so that lines of several lanes do not mix
	w  io.Writer
}

// New returns a sink that writes to w.
func New(w io.Writer) *Sink { return &Sink{w: w} }

var errNobodyReads = fmt.Errorf("%w: nobody reads the output", sinks.ErrUnavailable)

// Deliver writes all messages of batch with one Write. If nobody reads the pipe, or if the Write fails, the messages fail with
// ErrUnavailable. A failed Write may have printed a part of them.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		return nil
	}
	var b sinks.Batch
	b.Begin(batch)
	if s.stalled() {
		for i := range batch {
			b.Fail(i, errNobodyReads)
		}
		return b.Errors()
	}
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	enc.SetEscapeHTML(false)
	for i := range batch {
		if err := enc.Encode(newLine(&batch[i])); err != nil { // cannot happen: a line holds strings, numbers and checked JSON
			return lose(&b, fmt.Errorf("%w: encode: %w", sinks.ErrUnavailable, err))
		}
	}
	// A Write to a pipe cannot be cancelled, so it runs on a goroutine of its own, which Deliver leaves when ctx ends.
	written := make(chan error, 1)
	go func() { written <- s.write(ctx, lines.Bytes()) }()
	select {
	case err := <-written:
		if err != nil {
			return lose(&b, fmt.Errorf("%w: write: %w", sinks.ErrUnavailable, err))
		}
		return nil
	case <-ctx.Done():
		return lose(&b, fmt.Errorf("%w: write: %w", sinks.ErrUnavailable, context.Cause(ctx)))
	}
}

func (s *Sink) write(ctx context.Context, lines []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil { // Deliver has returned already; the connector delivers these messages again
		return err
	}
	done := ctx.Done()
	s.running.Store(&done)
	defer s.running.Store(nil)
	_, err := s.w.Write(lines)
	return err
}

// stalled reports whether a Write still runs although its Deliver has returned. Every other Write would have to wait for it.
func (s *Sink) stalled() bool {
	done := s.running.Load()
	if done == nil {
		return false
	}
	select {
	case <-*done:
		return true
	default:
		return false
	}
}

// Check implements sinks.Checker. It writes nothing. The output is there unless nobody reads it, as far as an earlier Write has shown.
func (s *Sink) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w: %w", sinks.ErrUnavailable, context.Cause(ctx))
	case s.stalled():
		return nil, errNobodyReads
	}
	found := make([]sinks.TopicCheck, len(topics))
	for i, topic := range topics {
		found[i] = sinks.TopicCheck{Kind: "topic", Topic: topic}
	}
	return found, nil
}

// Close does nothing: the writer belongs to the caller.
func (s *Sink) Close() error { return nil }

// lose says of all messages that a part of them may have been printed.
func lose(b *sinks.Batch, err error) []error {
	for i := range b.Messages {
		b.Lose(i, err)
	}
	return b.Errors()
}

// line is what is printed of a message. It uses the names of the columns of event_outbox, and leaves out a column that is NULL.
type line struct {
	ID            string          `json:"id"`
	AggregateType string          `json:"aggregate_type"`
	AggregateID   string          `json:"aggregate_id"`
	EventType     string          `json:"event_type,omitempty"`
	EventVersion  int             `json:"event_version,omitempty"`
	Payload       *string         `json:"payload,omitempty"`
	PayloadBase64 []byte          `json:"payload_base64,omitempty"`
	Metadata      json.RawMessage `json:"metadata,omitempty"`
	CreatedAt     *time.Time      `json:"created_at,omitempty"`
	MaxRetries    *int            `json:"max_retries,omitempty"`
	TenantID      string          `json:"tenant_id,omitempty"`
	CorrelationID string          `json:"correlation_id,omitempty"`
	CausationID   string          `json:"causation_id,omitempty"`
	Topic         string          `json:"topic,omitempty"`
	Key           string          `json:"key,omitempty"`
}

func newLine(m *sinks.Message) *line {
	e := m.Event
	l := &line{
		ID: e.ID, AggregateType: e.AggregateType, AggregateID: e.AggregateID, EventType: e.EventType,
		EventVersion: e.EventVersion, MaxRetries: e.MaxRetries,
		TenantID: e.TenantID, CorrelationID: e.CorrelationID, CausationID: e.CausationID,
		Topic: m.Topic, Key: m.Key,
	}
	switch {
	case e.Payload == nil:
	case utf8.Valid(e.Payload):
		payload := string(e.Payload)
		l.Payload = &payload
	default:
		l.PayloadBase64 = e.Payload
	}
	switch {
	case json.Valid(e.Metadata) && utf8.Valid(e.Metadata):
		l.Metadata = e.Metadata
	case len(e.Metadata) > 0: // a mapped column may hold anything
		l.Metadata, _ = json.Marshal(string(e.Metadata)) // cannot fail: JSON can hold every string
	}
	if y := e.CreatedAt.Year(); !e.CreatedAt.IsZero() && y >= 0 && y <= 9999 { // RFC 3339 can write no other year
		l.CreatedAt = &e.CreatedAt
	}
	return l
}
