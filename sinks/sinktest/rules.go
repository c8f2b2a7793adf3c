package sinktest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func acceptsInOrder(t testing.TB, h *Harness) {
	all := interleaved(h, 40, "a", "b", "c", "d", "e")
	for batch := range slices.Chunk(all, 70) {
		mustDeliver(t.Context(), t, h, batch)
	}
	expect(t, h, all, once)
}

func nothingToDo(t testing.TB, h *Harness) {
	if errs := h.Sink.Deliver(t.Context(), nil); errs != nil {
		t.Errorf("want nil, got %v", errs)
	}
	expect(t, h, nil, once)
}

// payloads returns payloads that other connectors have failed with, such as valid JSON that Go or jsonb cannot keep,
// and payloads that are no JSON.
func payloads(limit int) map[string][]byte {
	all := map[string][]byte{
		"exponent":       []byte(`{"n":1e400}`),
		"big integer":    []byte(`{"n":9007199254740993123456789012345678901234567890}`),
		"escaped NUL":    []byte(`{"s":"\u0000"}`),
		"lone surrogate": []byte(`{"s":"\ud800"}`),
		"line ends":      []byte("{\r\n\t\"s\" :  \"\u2028\"\n}\n\n"),
		"emoji":          []byte(`{"s":"👩‍👩‍👧‍👦 é é"}`),
		"duplicate keys": []byte(`{"b":1,"a":2,"b":1.0}`),
		"markup":         []byte(`{"s":"<a href='x'>&amp;</a>\/"}`),
		"deep":           []byte(strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)),
		"long":           []byte(`{"s":"` + strings.Repeat("x", 2<<20) + `"}`),
		"no JSON":        []byte("plain text"),
		"no UTF-8":       {0xff, 0xfe, 0x00, 0x80, '\n', 0xc3, 0x28, 0xed, 0xa0, 0x80},
		"all bytes":      nil,
		"empty":          {},
		"NULL":           nil,
	}
	for b := range 256 {
		all["all bytes"] = append(all["all bytes"], byte(b))
	}
	maps.DeleteFunc(all, func(_ string, p []byte) bool { return limit > 0 && len(p) > limit })
	return all
}

func payloadByteForByte(t testing.TB, h *Harness) {
	var batch []sinks.Message
	corpus := payloads(h.MaxPayload)
	for _, name := range slices.Sorted(maps.Keys(corpus)) {
		m := message(h, name, 0)
		m.Event.Payload = corpus[name]
		batch = append(batch, m)
	}
	mustDeliver(t.Context(), t, h, batch)
	expect(t, h, batch, once)
}

func nullIsLeftOut(t testing.TB, h *Harness) {
	full, empty := message(h, "full", 0), message(h, "empty", 0)
	empty.Event.TenantID, empty.Event.CorrelationID, empty.Event.CausationID = "", "", ""
	empty.Event.Metadata, empty.Event.MaxRetries = nil, nil
	batch := []sinks.Message{full, empty}
	mustDeliver(t.Context(), t, h, batch)
	expect(t, h, batch, once)
	want := map[string]map[string]string{
		full.Event.ID: {
			"tenant_id": full.Event.TenantID, "correlation_id": full.Event.CorrelationID, "causation_id": full.Event.CausationID,
		},
		empty.Event.ID: {},
	}
	for _, r := range h.Received() {
		if !maps.Equal(r.Columns, want[r.ID]) {
			t.Errorf("%s: want columns %v, got %v", r.ID, want[r.ID], r.Columns)
		}
	}
}

// severalLanes: several lanes call Deliver at the same time, each with aggregates of its own.
func severalLanes(t testing.TB, h *Harness) {
	const lanes = 4
	var all [lanes][]sinks.Message
	var wg sync.WaitGroup
	for lane := range lanes {
		all[lane] = interleaved(h, 50, fmt.Sprint("lane", lane, "x"), fmt.Sprint("lane", lane, "y"))
		wg.Go(func() {
			for batch := range slices.Chunk(all[lane], 7) {
				if errs := h.Sink.Deliver(t.Context(), batch); errs != nil {
					t.Errorf("lane %d: %v", lane, errors.Join(errs...))
				}
			}
		})
	}
	wg.Wait()
	expect(t, h, slices.Concat(all[:]...), once)
}

// batchIsBorrowed: Deliver does not change the batch, and does not read it after it has returned.
func batchIsBorrowed(t testing.TB, h *Harness) {
	batch := interleaved(h, 20, "a", "b")
	want := clone(batch)
	mustDeliver(t.Context(), t, h, batch)
	if !reflect.DeepEqual(batch, want) {
		t.Errorf("the batch was changed")
	}
	scribble(batch)
	more := interleaved(h, 1, "c")
	mustDeliver(t.Context(), t, h, more)
	expect(t, h, append(want, more...), once)
}

// scribble overwrites a batch and its events, as the owner may do after Deliver has returned.
func scribble(batch []sinks.Message) {
	for i := range batch {
		for j := range batch[i].Event.Payload {
			batch[i].Event.Payload[j] = '#'
		}
		*batch[i].Event = outbox.Event{ID: "scribbled"}
		batch[i] = sinks.Message{}
	}
}

func permanent(t testing.TB, h *Harness) {
	spoil(t, h, h.Permanent, func(err error) bool { return errors.Is(err, sinks.ErrPermanent) })
}

func refused(t testing.TB, h *Harness) {
	spoil(t, h, h.Refuse, func(err error) bool {
		return !errors.Is(err, sinks.ErrPermanent) && !isAway(err) && !errors.Is(err, sinks.ErrNotAttempted)
	})
}

// spoil spoils some of many messages. Only they may fail, and the later messages of their aggregates.
func spoil(t testing.TB, h *Harness, with func(*sinks.Message), isOfClass func(error) bool) {
	if with == nil {
		t.Skip("the harness has no means")
	}
	batch := interleaved(h, 20, "a", "b", "c", "d", "e", "f")
	spoilt := map[string]bool{"a-0": true, "b-7": true, "c-19": true}
	for i := range batch {
		if spoilt[batch[i].Event.ID] {
			with(&batch[i])
		}
	}
	errs := deliver(t.Context(), t, h, batch)
	if errs == nil {
		t.Fatal("all were accepted")
	}
	var accepted, held []sinks.Message
	failed := make(map[string]bool)
	for i, m := range batch {
		e := m.Event
		switch {
		case failed[e.AggregateID]:
			if !errors.Is(errs[i], sinks.ErrNotAttempted) {
				t.Errorf("%s behind a failure: want ErrNotAttempted, got %v", e.ID, errs[i])
			}
			held = append(held, m)
		case spoilt[e.ID]:
			failed[e.AggregateID] = true
			if errs[i] == nil || !isOfClass(errs[i]) {
				t.Errorf("%s is spoilt: got error %v", e.ID, errs[i])
			}
		default:
			if errs[i] != nil {
				t.Errorf("%s is sound: got error %v", e.ID, errs[i])
			}
			accepted = append(accepted, m)
		}
	}
	expect(t, h, accepted, once)
	mustDeliver(t.Context(), t, h, held) // as if the spoilt messages before them had been given up
	expect(t, h, append(accepted, held...), once)
}

func away(t testing.TB, h *Harness) {
	if h.Away == nil {
		t.Skip("the harness has no means")
	}
	before := interleaved(h, 2, "a", "b")
	mustDeliver(t.Context(), t, h, before)
	batch := interleaved(h, 3, "a", "b", "c")
	for i := range batch {
		batch[i].Event.ID += "-later"
	}
	back := h.Away()
	ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(h.awayWithin, awayWithin))
	defer cancel()
	errs := deliver(ctx, t, h, batch)
	if ctx.Err() != nil {
		t.Errorf("a destination that refuses connections made Deliver last as long as its deadline")
	}
	expectUnavailable(t, batch, errs)
	back()
	deliverAgain(t, h, batch)
	expect(t, h, append(before, batch...), orRepeated)
}

func hang(t testing.TB, h *Harness) {
	if h.Hang == nil {
		t.Skip("the harness has no means")
	}
	before := interleaved(h, 2, "a", "b")
	mustDeliver(t.Context(), t, h, before)
	batch := interleaved(h, 3, "a", "b", "c")
	for i := range batch {
		batch[i].Event.ID += "-later"
	}
	want := clone(batch)
	back := h.Hang()
	const timeout = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	began := time.Now()
	errs := deliver(ctx, t, h, batch)
	if took := time.Since(began); took > timeout+lateness {
		t.Errorf("returned %v after its deadline", took-timeout)
	}
	expectUnavailable(t, batch, errs)
	if !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, sinks.ErrNotAttempted) }) {
		t.Error("nothing was attempted of a destination that hangs")
	}
	scribble(batch)
	back()
	deliverAgain(t, h, clone(want))
	expect(t, h, append(before, want...), orRepeated)
}

func contextEnded(t testing.TB, h *Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	batch := interleaved(h, 3, "a", "b")
	began := time.Now()
	errs := deliver(ctx, t, h, batch)
	if took := time.Since(began); took > lateness {
		t.Errorf("took %v", took)
	}
	expectUnavailable(t, batch, errs)
	deliverAgain(t, h, batch)
	expect(t, h, batch, orRepeated)
}

// expectUnavailable checks that nothing was accepted, because the destination was away. deliver has checked already
// that only later messages of an aggregate are ErrNotAttempted.
func expectUnavailable(t testing.TB, batch []sinks.Message, errs []error) {
	t.Helper()
	if errs == nil {
		t.Fatal("want ErrUnavailable for all, got nil")
	}
	for i, err := range errs {
		if err == nil || !errors.Is(err, sinks.ErrUnavailable) && !errors.Is(err, sinks.ErrNotAttempted) {
			t.Errorf("%s: want ErrUnavailable, got %v", batch[i].Event.ID, err)
		}
	}
}

// repetitions: messages that the destination has already are accepted again. After a crash the connector sends such
// messages. They are not New.
func repetitions(t testing.TB, h *Harness) {
	batch := interleaved(h, 3, "a", "b")
	mustDeliver(t.Context(), t, h, batch)
	again := clone(batch)
	for i := range again {
		again[i].New, again[i].Attempt = false, 2
	}
	mustDeliver(t.Context(), t, h, again)
	expect(t, h, batch, orRepeated)
}

// newIsNoRepetition: if a New message has the id of another one, Deliver must not report it as accepted unless it has arrived.
func newIsNoRepetition(t testing.TB, h *Harness) {
	mustDeliver(t.Context(), t, h, []sinks.Message{message(h, "a", 0)})
	other := message(h, "a", 0)
	other.Index, other.Event.Payload = 1, []byte("another one")
	if errs := deliver(t.Context(), t, h, []sinks.Message{other}); errs != nil {
		return
	}
	if !slices.ContainsFunc(h.Received(), func(r Received) bool { return string(r.Payload) == "another one" }) {
		t.Errorf("a new message with the id of another one was accepted, and is lost")
	}
}
