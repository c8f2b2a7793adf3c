package composite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/sinktest"
)

// fake answers by event id, follows the contract for later messages of an aggregate, and remembers what it has accepted.
type fake struct {
	name     string
	errs     map[string]error
	hangs    bool
	accepted []string
	closed   bool
}

func (f *fake) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if f.hangs {
		<-ctx.Done()
		out := make([]error, len(batch))
		for i := range out {
			out[i] = fmt.Errorf("%w: %w", sinks.ErrUnavailable, context.Cause(ctx))
		}
		return out
	}
	out := make([]error, len(batch))
	failed := map[string]bool{}
	for i, m := range batch {
		switch err := f.errs[m.Event.ID]; {
		case failed[m.Event.AggregateID]:
			out[i] = sinks.ErrNotAttempted
		case err != nil:
			out[i], failed[m.Event.AggregateID] = err, true
		default:
			f.accepted = append(f.accepted, m.Topic+"/"+m.Event.ID)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return out
}

func (f *fake) Close() error {
	f.closed = true
	return errors.New("late")
}

func memberOf(f *fake) Member {
	return Member{f.name, f, func(e *outbox.Event) (string, string) { return f.name, e.AggregateID }}
}

// batch makes messages of ids such as "a1", which consist of aggregate and number.
func batch(ids ...string) (out []sinks.Message) {
	for _, id := range ids {
		out = append(out, sinks.Message{Event: &outbox.Event{ID: id, AggregateType: "t", AggregateID: id[:1]}, Topic: "none"})
	}
	return out
}

var (
	errRefused   = errors.New("500")
	errAway      = fmt.Errorf("dial: %w", sinks.ErrUnavailable)
	errPermanent = fmt.Errorf("too large: %w", sinks.ErrPermanent)
)

func TestAny(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name          string
		first, second map[string]error
		accepted      string // by the first; by the second
		errs          string // a message
	}{
		{"the first accepts", nil, nil, "a1 a2 b1; ", ""},
		{"what fails goes on with what stands behind", map[string]error{"a1": errAway}, nil, "b1; a1 a2", ""},
		{"a prefix stays", map[string]error{"a2": errRefused}, nil, "a1 b1; a2", ""},
		{"both are away", map[string]error{"a1": errAway}, map[string]error{"a1": errAway}, "b1; ", "away, not attempted, ok"},
		{"away beats refused", map[string]error{"a1": errAway}, map[string]error{"a1": errRefused}, "b1; ", "away, not attempted, ok"},
		{"and the other way round", map[string]error{"a1": errRefused}, map[string]error{"a1": errAway}, "b1; ", "away, not attempted, ok"},
		{"refused beats permanent", map[string]error{"a1": errPermanent}, map[string]error{"a1": errRefused}, "b1; ", "refused, not attempted, ok"},
		{"permanent where all say so", map[string]error{"a1": errPermanent}, map[string]error{"a1": errPermanent}, "b1; ", "permanent, not attempted, ok"},
		{"not permanent where one was not asked", map[string]error{"a1": errRefused}, map[string]error{"a2": errPermanent}, "b1; a1", "ok, refused, ok"},
		{"one behind fails elsewhere", map[string]error{"a1": errAway}, map[string]error{"a2": errRefused}, "b1; a1", "ok, refused, ok"},
	} {
		first, second := &fake{name: "first", errs: test.first}, &fake{name: "second", errs: test.second}
		errs := NewAny(memberOf(first), memberOf(second)).Deliver(t.Context(), batch("a1", "a2", "b1"))
		if got := strings.ReplaceAll(strings.Join(first.accepted, " "), "first/", "") + "; " +
			strings.ReplaceAll(strings.Join(second.accepted, " "), "second/", ""); got != test.accepted {
			t.Errorf("%s: accepted %q, want %q", test.name, got, test.accepted)
		}
		if got := strings.Join(classes(errs), ", "); got != test.errs {
			t.Errorf("%s: %s (%v), want %s", test.name, got, errs, test.errs)
		}
	}
}

func classes(errs []error) (out []string) {
	for _, err := range errs {
		switch {
		case err == nil:
			out = append(out, "ok")
		case errors.Is(err, sinks.ErrNotAttempted):
			out = append(out, "not attempted")
		case errors.Is(err, sinks.ErrPermanent):
			out = append(out, "permanent")
		case errors.Is(err, sinks.ErrUnavailable):
			out = append(out, "away")
		default:
			out = append(out, "refused")
		}
	}
	return out
}

// A member that never answers leaves time for the others.
func TestAnyHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := &fake{name: "first", hangs: true}, &fake{name: "second"}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		if errs := NewAny(memberOf(first), memberOf(second)).Deliver(ctx, batch("a1")); errs != nil {
			t.Errorf("%v", errs)
		}
		if took := time.Since(began); took != 15*time.Second {
			t.Errorf("the second had its turn after %s, want 15s", took)
		}
	})
}

func TestAnyCloses(t *testing.T) {
	t.Parallel()
	first, second := &fake{name: "first"}, &fake{name: "second"}
	err := NewAny(memberOf(first), memberOf(second)).Close()
	if !first.closed || !second.closed || err == nil || err.Error() != "first: late\nsecond: late" {
		t.Errorf("closed %t and %t: %v", first.closed, second.closed, err)
	}
}

// memory is a sink for several lanes that accepts all messages.
type memory struct {
	mu  sync.Mutex
	got []sinktest.Received
}

func (m *memory) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if ctx.Err() != nil {
		out := make([]error, len(batch))
		for i := range out {
			out[i] = fmt.Errorf("%w: %w", sinks.ErrUnavailable, ctx.Err())
		}
		return out
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, msg := range batch {
		e := msg.Event
		columns := map[string]string{}
		for name, value := range map[string]string{"tenant_id": e.TenantID, "correlation_id": e.CorrelationID, "causation_id": e.CausationID} {
			if value != "" {
				columns[name] = value
			}
		}
		m.got = append(m.got, sinktest.Received{ID: e.ID, Payload: slices.Clone(e.Payload), Columns: columns})
	}
	return nil
}

func (m *memory) Close() error { return nil }

func (m *memory) received() []sinktest.Received {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got)
}

// picky refuses every third message permanently.
type picky struct {
	*memory
	seen atomic.Int64
}

func (p *picky) Deliver(ctx context.Context, batch []sinks.Message) []error {
	out := make([]error, len(batch))
	failed := map[string]bool{}
	var take []sinks.Message
	for i, m := range batch {
		switch {
		case failed[m.Event.AggregateID]:
			out[i] = sinks.ErrNotAttempted
		case p.seen.Add(1)%3 == 0:
			out[i], failed[m.Event.AggregateID] = errPermanent, true
		default:
			take = append(take, m)
		}
	}
	if errs := p.memory.Deliver(ctx, take); errs != nil {
		for i := range out {
			out[i] = errs[0]
		}
		return out
	}
	if len(failed) == 0 {
		return nil
	}
	return out
}

// The suite passes, even if the first member is picky.
func TestConformance(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(testing.TB) *sinktest.Harness {
		all := &memory{}
		address := func(e *outbox.Event) (string, string) { return "topic", e.AggregateID }
		return &sinktest.Harness{
			Sink: NewAny(Member{"picky", &picky{memory: all}, address}, Member{"all", all, address}), Topic: "topic", Received: all.received,
		}
	})
}
