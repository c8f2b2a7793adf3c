package sinktest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	topicTimeout = 5 * time.Second // of a Deliver whose topic may hang until the deadline
	topicBack    = time.Minute     // how soon messages of a topic that is back must be accepted
)

// withTopicAway makes messages of five aggregates. Those of a and b are on h.Topic, those of c and d on the topic that is
// away, and those of e alternate: every second one is on the topic that is away. Their ids end in suffix.
func withTopicAway(h *Harness, suffix string) (batch []sinks.Message, gone map[string]bool, back func()) {
	batch, gone = interleaved(h, 4, "a", "b", "c", "d", "e"), map[string]bool{}
	for i := range batch {
		m := &batch[i]
		m.Event.ID += suffix
		if a := m.Event.AggregateID; a == "c" || a == "d" || a == "e" && m.Index%2 == 1 {
			back, gone[m.Event.ID] = h.TopicAway(m), true
		}
	}
	return batch, gone, back
}

// topicAway: a topic that is away stops only its own messages, and the later ones of their aggregates.
func topicAway(t testing.TB, h *Harness) {
	if h.TopicAway == nil {
		t.Skip("the harness has no means")
	}
	batch, gone, back := withTopicAway(h, "")
	errs := deliverInTime(t, h, batch)
	accepted, rest := topicOutcomes(t, batch, errs, gone)
	if !slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, sinks.ErrTopicUnavailable) }) {
		t.Errorf("a topic is away: want ErrTopicUnavailable for one of its messages at least, got %v", errors.Join(errs...))
	}
	expect(t, h, accepted, once)
	back()
	deliverWhenDue(t, h, rest)
	expect(t, h, append(accepted, rest...), orRepeated)
}

// topicPutOff: a topic that was found away is not asked again before its time, and holds nobody up until then.
func topicPutOff(t testing.TB, h *Harness) {
	if h.TopicAway == nil {
		t.Skip("the harness has no means")
	}
	var accepted, rest []sinks.Message
	var back func()
	isPutOff := false
	// If the machine is slow, the first short times are over before the next call.
	for _, suffix := range []string{"", "-second", "-third", "-fourth", "-fifth"} {
		var batch []sinks.Message
		var gone map[string]bool
		batch, gone, back = withTopicAway(h, suffix)
		if rest != nil { // what stands behind them is still owed
			batch = slices.DeleteFunc(batch, func(m sinks.Message) bool { return m.Event.AggregateID > "b" })
			for _, m := range rest {
				gone[m.Event.ID] = true
			}
			batch = append(batch, rest...)
		}
		began := time.Now()
		errs := deliverInTime(t, h, batch)
		took := time.Since(began)
		now, owed := topicOutcomes(t, batch, errs, gone)
		accepted, rest = append(accepted, now...), owed
		expect(t, h, accepted, once)
		asked := slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, sinks.ErrTopicUnavailable) })
		if isPutOff = suffix != "" && !asked; isPutOff {
			if took > lateness {
				t.Errorf("a topic that is known to be away held others up for %v", took)
			}
			break
		}
	}
	if !isPutOff {
		t.Error("a topic that is away is asked in every call: want ErrNotAttempted with a time")
	}
	back()
	if sink, ok := h.Sink.(sinks.Rememberer); ok {
		sink.AskNow()
		now, owed := rest, []sinks.Message(nil)
		if errs := deliverInTime(t, h, rest); errs != nil {
			now = nil
			for i, err := range errs {
				if err != nil {
					owed = append(owed, rest[i])
				} else {
					now = append(now, rest[i])
				}
			}
			if now == nil {
				t.Errorf("a person has it ask now, and nothing was accepted: %v", errors.Join(errs...))
			}
		}
		accepted, rest = append(accepted, now...), owed
	}
	deliverWhenDue(t, h, rest)
	expect(t, h, append(accepted, rest...), orRepeated)
}

func deliverInTime(t testing.TB, h *Harness, batch []sinks.Message) []error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), topicTimeout)
	defer cancel()
	return deliver(ctx, t, h, batch)
}

// topicOutcomes checks that a topic which is away stops no message but its own, which gone names, and those behind them. It
// returns what was accepted, and what is still owed.
func topicOutcomes(t testing.TB, batch []sinks.Message, errs []error, gone map[string]bool) (accepted, rest []sinks.Message) {
	t.Helper()
	if errs == nil {
		t.Fatal("a topic is away, and all were accepted")
	}
	behind := map[string]bool{}
	for i, m := range batch {
		err, e := errs[i], m.Event
		switch {
		case behind[e.AggregateID]: // deliver has checked it
		case gone[e.ID]:
			if !errors.Is(err, sinks.ErrTopicUnavailable) && !errors.Is(err, sinks.ErrNotAttempted) {
				t.Errorf("%s, whose topic is away: want ErrTopicUnavailable, or ErrNotAttempted with a time, got %v", e.ID, err)
			}
		case err != nil:
			t.Errorf("%s is of a topic that is not away: got error %v", e.ID, err)
		}
		if err == nil {
			accepted = append(accepted, m)
			continue
		}
		behind[e.AggregateID] = true
		rest = append(rest, m)
	}
	return accepted, rest
}

// deliverWhenDue delivers messages of a topic that is back until all are accepted. It calls only when the times have
// passed that the sink has given.
func deliverWhenDue(t testing.TB, h *Harness, batch []sinks.Message) {
	t.Helper()
	for i := range batch { // an earlier try may have been accepted
		batch[i].New = false
	}
	began := time.Now()
	errs := deliverInTime(t, h, batch)
	for errs != nil {
		var rest []sinks.Message
		wait := 50 * time.Millisecond
		for i, err := range errs {
			if err != nil {
				rest = append(rest, batch[i])
				wait = max(wait, sinks.RetryAfter(err))
			}
		}
		putOff := noneAttempted(errs)
		if time.Since(began) > topicBack {
			t.Fatalf("the topic is back, and %d messages are not accepted: %v", len(rest), errors.Join(errs...))
		}
		select {
		case <-time.After(wait):
		case <-t.Context().Done():
			return
		}
		batch = rest
		errs = deliverInTime(t, h, batch)
		if errs != nil && putOff && noneAttempted(errs) {
			t.Fatalf("the time of %v has passed, and nothing was attempted: %v", wait, errors.Join(errs...))
		}
	}
}

func noneAttempted(errs []error) bool {
	return !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, sinks.ErrNotAttempted) })
}
