package sinktest

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// RandomLane delivers all messages as a lane does: in batches of random size, with random deadlines, and what was not
// accepted again. The test may disturb the destination meanwhile. It returns, by event id, how many copies of each
// message the destination may have. An error that belongs to no class fails the test, unless it is one of allowed.
func RandomLane(t testing.TB, s sinks.Sink, r *rand.Rand, all []sinks.Message, allowed ...error) map[string]int {
	copies := make(map[string]int)
	deadline := time.Now().Add(time.Minute)
	for len(all) > 0 {
		n := min(1+r.IntN(60), len(all))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(50+r.IntN(400))*time.Millisecond)
		errs := s.Deliver(ctx, all[:n])
		cancel()
		for i, m := range all[:n] {
			if errs == nil || errs[i] == nil || isAway(errs[i]) { // it was accepted, or may have been
				copies[m.Event.ID]++
			}
		}
		again := NotAccepted(t, all[:n], errs, allowed...)
		if again != nil && time.Now().After(deadline) {
			t.Errorf("%d messages are not accepted: %v", len(all), errors.Join(errs...))
			return copies
		}
		all = slices.Concat(again, all[n:])
		if slices.ContainsFunc(errs, func(err error) bool { return sinks.RetryAfter(err) > 0 }) {
			select { // a topic is away: the lane need not ask all the time
			case <-time.After(20 * time.Millisecond):
			case <-t.Context().Done():
			}
		}
	}
	return copies
}

// NotAccepted returns the messages of batch that have to be delivered again. Every error must be ErrUnavailable,
// ErrNotAttempted or one of allowed. Any other fails the test.
func NotAccepted(t testing.TB, batch []sinks.Message, errs []error, allowed ...error) (again []sinks.Message) {
	t.Helper()
	allowed = append(allowed, sinks.ErrUnavailable, sinks.ErrNotAttempted)
	for i, err := range errs {
		if err == nil {
			continue
		}
		if !slices.ContainsFunc(allowed, func(class error) bool { return errors.Is(err, class) }) {
			t.Errorf("message %s: %v", batch[i].Event.ID, err)
		}
		again = append(again, batch[i])
	}
	return again
}

// CheckLanes compares what lanes have delivered with the ids that have arrived, which are in order within each topic.
// Each message must have arrived at least once, and at most as often as copies of its lane says. The first copies of
// the messages of each aggregate in a topic must be in order.
func CheckLanes(t testing.TB, lanes [][]sinks.Message, copies []map[string]int, arrived []string) {
	t.Helper()
	at := make(map[string]string) // by event id, the aggregate and the topic within which order is kept
	want := make(map[string][]string)
	for _, m := range slices.Concat(lanes...) {
		at[m.Event.ID] = m.Event.AggregateID + " " + m.Topic
		want[at[m.Event.ID]] = append(want[at[m.Event.ID]], m.Event.ID)
	}
	got := make(map[string]int)
	first := make(map[string][]string)
	for _, id := range arrived {
		if got[id]++; got[id] == 1 {
			first[at[id]] = append(first[at[id]], id)
		}
	}
	for lane, messages := range lanes {
		for _, m := range messages {
			if id := m.Event.ID; got[id] < 1 || got[id] > copies[lane][id] {
				t.Errorf("message %s is there %d times, want 1 to %d", id, got[id], copies[lane][id])
			}
		}
	}
	for a, ids := range want {
		if !slices.Equal(ids, first[a]) {
			t.Errorf("aggregate %s: want %v, got %v", a, ids, first[a])
		}
	}
}
