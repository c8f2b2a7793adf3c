package sinktest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// Sink appends each event to a file as a line of JSON.
type Sink struct {
	mu   sync.Mutex // several lanes deliver at a time
	file *os.File
}

// Open makes a sink of the file at path.
func Open(path string) (*Sink, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &Sink{file: file}, nil
}

type line struct {
	ID      string
	Payload []byte // base64, as it may be any bytes; null where there is none
	Columns map[string]string
}

const maxPayload = 4 << 20

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		return nil
	}
	var b sinks.Batch // keeps the order: behind a message that failed, its aggregate is not attempted
	b.Begin(batch)
	var lines bytes.Buffer
	for i := range batch {
		m := &batch[i]
		if b.Blocked(i) {
			b.Fail(i, sinks.ErrNotAttempted)
			continue
		}
		if len(m.Event.Payload) > maxPayload {
			b.Fail(i, fmt.Errorf("%w: a payload of %d bytes", sinks.ErrPermanent, len(m.Event.Payload)))
			continue
		}
		l := line{ID: m.Event.ID, Payload: m.Event.Payload, Columns: map[string]string{}}
		for name, value := range map[string]string{
			"tenant_id": m.Event.TenantID, "correlation_id": m.Event.CorrelationID, "causation_id": m.Event.CausationID,
		} {
			if value != "" { // empty is NULL
				l.Columns[name] = value
			}
		}
		if err := json.NewEncoder(&lines).Encode(l); err != nil {
			return unavailable(batch, err)
		}
	}
	if err := s.write(ctx, lines.Bytes()); err != nil {
		return unavailable(batch, err) // some may be there all the same: they come again, with the same ids
	}
	return b.Errors()
}

// write returns when the lines are on the disk: accepted means durably so.
func (s *Sink) write(ctx context.Context, lines []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, err := s.file.Write(lines); err != nil {
		return err
	}
	return s.file.Sync()
}

func unavailable(batch []sinks.Message, err error) []error {
	errs := make([]error, len(batch))
	for i := range errs {
		errs[i] = fmt.Errorf("%w: %w", sinks.ErrUnavailable, err)
	}
	return errs
}

// Close implements sinks.Sink.
func (s *Sink) Close() error { return s.file.Close() }

func TestSink(t *testing.T) {
	sinktest.Run(t, func(t testing.TB) *sinktest.Harness {
		path := filepath.Join(t.TempDir(), "events")
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return &sinktest.Harness{
			Sink:      s,
			Topic:     "events",
			Received:  func() []sinktest.Received { return read(t, path) },
			Permanent: func(m *sinks.Message) { m.Event.Payload = make([]byte, maxPayload+1) },
		}
	})
}

// read is what the destination has.
func read(t testing.TB, path string) (all []sinktest.Received) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		var l line
		if err := dec.Decode(&l); err != nil {
			break
		}
		all = append(all, sinktest.Received{ID: l.ID, Payload: l.Payload, Columns: l.Columns})
	}
	return all
}

// The page shows this file.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/custom-sinks.md")
	own, err2 := os.ReadFile("example_test.go")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	sink, rest, _ := strings.Cut(string(own), "\nfunc TestSink")
	_, sink, _ = strings.Cut(sink, "// Sink appends")
	test, _, _ := strings.Cut(rest, "\n// The page shows")
	for _, code := range []string{"// Sink appends" + sink, "func TestSink" + test} {
		if !strings.Contains(string(page), "\n"+strings.TrimRight(code, "\n")+"\n```\n") {
			t.Errorf("docs/custom-sinks.md has not:\n%s", code)
		}
	}
}
