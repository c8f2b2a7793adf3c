// Package stdout is the sink that prints events, one JSON object a line: to look at, or for another program to read
// through a pipe. A line is accepted when the writer has taken it; nothing is known of what is behind a pipe.
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
	// running tells when the Deliver of the running Write ended; nil while none runs.
	running atomic.Pointer[<-chan struct{}]

	mu sync.Mutex // one Write at a time: lines of several lanes must not mix
	w  io.Writer
}

// New returns a sink that writes to w.
func New(w io.Writer) *Sink { return &Sink{w: w} }

// Deliver writes all of batch with one Write. A pipe that nobody reads makes it unavailable, as does a failed Write, of
// which a part may have been printed.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		return nil
	}
	if s.stalled() {
		return unavailable(batch, fmt.Errorf("%w: nobody reads the output", sinks.ErrUnavailable))
	}
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	enc.SetEscapeHTML(false)
	for i := range batch {
		if err := enc.Encode(newLine(&batch[i])); err != nil { // strings, numbers and checked JSON: never
			return unavailable(batch, fmt.Errorf("%w: encode: %w", sinks.ErrUnavailable, err))
		}
	}
	// A Write to a pipe cannot be called off, so it runs beside.
	written := make(chan error, 1)
	go func() { written <- s.write(ctx, lines.Bytes()) }()
	select {
	case err := <-written:
		if err != nil {
			return unavailable(batch, fmt.Errorf("%w: write: %w", sinks.ErrUnavailable, err))
		}
		return nil
	case <-ctx.Done():
		return unavailable(batch, fmt.Errorf("%w: write: %w", sinks.ErrUnavailable, context.Cause(ctx)))
	}
}

func (s *Sink) write(ctx context.Context, lines []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil { // its Deliver has returned: the lines will come again
		return err
	}
	done := ctx.Done()
	s.running.Store(&done)
	defer s.running.Store(nil)
	_, err := s.w.Write(lines)
	return err
}

// stalled tells whether a Write has outlived its Deliver: until it returns, every other would wait behind it.
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

// Close does nothing: the writer is the caller's.
func (s *Sink) Close() error { return nil }

func unavailable(batch []sinks.Message, err error) []error {
	errs := make([]error, len(batch))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// line has the columns' names; a column that is NULL is left out.
type line struct {
	ID            string          `json:"id"`
	AggregateType string          `json:"aggregate_type"`
	AggregateID   string          `json:"aggregate_id"`
	EventType     string          `json:"event_type,omitempty"`
	EventVersion  int             `json:"event_version"`
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
		EventVersion: max(e.EventVersion, 1), MaxRetries: e.MaxRetries,
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
		l.Metadata, _ = json.Marshal(string(e.Metadata)) // a string always can
	}
	if y := e.CreatedAt.Year(); !e.CreatedAt.IsZero() && y >= 0 && y <= 9999 { // what RFC 3339 can say
		l.CreatedAt = &e.CreatedAt
	}
	return l
}
