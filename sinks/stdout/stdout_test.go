package stdout

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t testing.TB) *sinktest.Harness {
		w := &pipe{}
		return &sinktest.Harness{
			Sink:  struct{ sinks.Sink }{New(w)}, // without Check, which writes nothing and so finds nothing out
			Topic: "orders", Received: func() []sinktest.Received { return w.received(t) },
			Away: w.close, Hang: w.block,
		}
	})
}

// TestCheck: the output is there, until a Write has shown that nobody reads it.
func TestCheck(t *testing.T) {
	t.Parallel()
	w := &pipe{}
	s := New(w)
	if found, err := s.Check(t.Context(), []string{"a", "b"}); err != nil || len(found) != 2 || found[1].Topic != "b" || found[1].Err != nil {
		t.Errorf("%v, %v", found, err)
	}
	read := w.block()
	defer read()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // enough for the Write to begin
	defer cancel()
	s.Deliver(ctx, []sinks.Message{{Event: &outbox.Event{ID: "1"}}})
	if _, err := s.Check(t.Context(), nil); !errors.Is(err, sinks.ErrUnavailable) {
		t.Errorf("nobody reads, and Check says: %v", err)
	}
}

// pipe is a writer that a test can close or stop reading.
type pipe struct {
	mu      sync.Mutex
	lines   bytes.Buffer
	err     error
	blocked chan struct{}
}

func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	blocked := p.blocked
	p.mu.Unlock()
	if blocked != nil {
		<-blocked
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	return p.lines.Write(b)
}

func (p *pipe) close() (open func()) {
	set := func(err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.err = err
	}
	set(io.ErrClosedPipe)
	return func() { set(nil) }
}

func (p *pipe) block() (unblock func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blocked = make(chan struct{})
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		close(p.blocked)
		p.blocked = nil
	}
}

func (p *pipe) received(t testing.TB) (all []sinktest.Received) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lines := bufio.NewScanner(bytes.NewReader(p.lines.Bytes()))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var l struct {
			ID            string  `json:"id"`
			Payload       *string `json:"payload"`
			PayloadBase64 []byte  `json:"payload_base64"`
		}
		columns := make(map[string]any)
		if err := errors.Join(json.Unmarshal(lines.Bytes(), &l), json.Unmarshal(lines.Bytes(), &columns)); err != nil {
			t.Errorf("line %.100q: %v", lines.Text(), err)
			continue
		}
		r := sinktest.Received{ID: l.ID, Payload: l.PayloadBase64, Columns: make(map[string]string)}
		if l.Payload != nil {
			r.Payload = []byte(*l.Payload)
		}
		for _, name := range []string{"tenant_id", "correlation_id", "causation_id"} {
			if value, ok := columns[name]; ok {
				r.Columns[name] = value.(string)
			}
		}
		all = append(all, r)
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
	return all
}

func TestLine(t *testing.T) {
	t.Parallel()
	retries := 5
	full := sinks.Message{
		Event: &outbox.Event{
			ID: "0190f5a0-0000-7000-8000-000000000001", AggregateType: "Order", AggregateID: "o-1", EventType: "OrderPlaced",
			EventVersion: 2, Payload: []byte("{\"a\": \"<é>\",\n \"b\": 1e400}"), Metadata: []byte("{\"user\": \"u\",\n\"n\": 1}"),
			CreatedAt: time.Date(2026, 11, 24, 4, 5, 6, 789_000, time.UTC), MaxRetries: &retries,
			TenantID: "t", CorrelationID: "c", CausationID: "d",
		},
		Topic: "outbox.event.Order", Key: "o-1",
	}
	bytesOnly := sinks.Message{Event: &outbox.Event{
		ID: "2", AggregateType: "Order", AggregateID: "o-1", EventType: "e", Payload: []byte{0xff, 0}, Metadata: []byte("no JSON\n"),
	}}
	noText := sinks.Message{Event: &outbox.Event{ID: "\xff", AggregateType: "Order", AggregateID: "o-1", Metadata: []byte("{\"a\":\"\xff\"}")}}
	null := sinks.Message{Event: &outbox.Event{ID: "3", AggregateType: "Order", AggregateID: "o-1", EventType: "e"}}
	var out bytes.Buffer
	if errs := New(&out).Deliver(t.Context(), []sinks.Message{full, bytesOnly, noText, null}); errs != nil {
		t.Fatal(errs)
	}
	want := `{"id":"0190f5a0-0000-7000-8000-000000000001","aggregate_type":"Order","aggregate_id":"o-1","event_type":"OrderPlaced",` +
		`"event_version":2,"payload":"{\"a\": \"<é>\",\n \"b\": 1e400}","metadata":{"user":"u","n":1},` +
		`"created_at":"2026-11-24T04:05:06.000789Z","max_retries":5,"tenant_id":"t","correlation_id":"c","causation_id":"d",` +
		`"topic":"outbox.event.Order","key":"o-1"}` + "\n" +
		`{"id":"2","aggregate_type":"Order","aggregate_id":"o-1","event_type":"e","payload_base64":"/wA=",` +
		`"metadata":"no JSON\n"}` + "\n" +
		`{"id":"\ufffd","aggregate_type":"Order","aggregate_id":"o-1","metadata":"{\"a\":\"\ufffd\"}"}` + "\n" +
		`{"id":"3","aggregate_type":"Order","aggregate_id":"o-1","event_type":"e"}` + "\n"
	if diff := cmp.Diff(strings.SplitAfter(want, "\n"), strings.SplitAfter(out.String(), "\n")); diff != "" {
		t.Error(diff)
	}
}

// TestStalledPipe: if nobody reads the pipe, one Deliver ends at its deadline, and the next ones at once. No goroutine is
// left behind.
func TestStalledPipe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &pipe{}
		s := New(w)
		unblock := w.block()
		batch := []sinks.Message{{Event: &outbox.Event{ID: "1"}}}
		for i, want := range []time.Duration{30 * time.Second, 0, 0} {
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			errs := s.Deliver(ctx, batch)
			cancel()
			if len(errs) != 1 || !errors.Is(errs[0], sinks.ErrUnavailable) {
				t.Errorf("Deliver %d: want ErrUnavailable, got %v", i, errs)
			}
			if took := time.Since(began); took != want {
				t.Errorf("Deliver %d took %v, want %v", i, took, want)
			}
		}
		unblock()
		synctest.Wait()
		if errs := s.Deliver(t.Context(), batch); errs != nil {
			t.Errorf("somebody reads again: %v", errs)
		}
	})
}
