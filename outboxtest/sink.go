package outboxtest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// patience is how long an assertion waits for what is on its way.
const patience = 20 * time.Second

// Sink keeps what is published. It is a service.Publisher and may be used concurrently.
type Sink struct {
	mu      sync.Mutex
	entries []outbox.OutboxEntry
	seen    map[string]bool // by id
	changed chan struct{}   // closed by the next entry
}

// NewSink makes an empty one.
func NewSink() *Sink { return &Sink{seen: map[string]bool{}, changed: make(chan struct{})} }

// GetName implements service.Publisher.
func (s *Sink) GetName() string { return "outboxtest" }

// Publish implements service.Publisher.
func (s *Sink) Publish(_ context.Context, entry *outbox.OutboxEntry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[entry.ID] { // delivery is at least once
		return nil
	}
	s.seen[entry.ID] = true
	s.entries = append(s.entries, *entry)
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// Published are the events that came, in the order in which they did: of an aggregate, that of its commits. One that comes again
// is left out.
func (s *Sink) Published() []outbox.OutboxEntry {
	all, _ := s.published("")
	return all
}

// published also gives what is closed when there are more.
func (s *Sink) published(aggregateID string) ([]outbox.OutboxEntry, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.entries), func(e outbox.OutboxEntry) bool {
		return aggregateID != "" && e.AggregateID != aggregateID
	}), s.changed
}

// AssertPublished waits until as many events of an aggregate have come as there are types, 20 s at most, and fails unless all
// that have come are of these types, in this order. Without types it waits for nothing.
func (s *Sink) AssertPublished(t testing.TB, aggregateID string, types ...string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		entries, more := s.published(aggregateID)
		got := []string{}
		for _, e := range entries {
			got = append(got, e.EventType)
		}
		late := false
		if len(got) < len(types) {
			select {
			case <-more:
				continue
			case <-timer.C:
				late = true
			}
		}
		if late || !slices.Equal(got, types) {
			t.Errorf("events published of %q (-want +got):\n%s", aggregateID, cmp.Diff(append([]string{}, types...), got))
		}
		return
	}
}
