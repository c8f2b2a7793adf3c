package sinktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestRightSinkPasses(t *testing.T) {
	t.Parallel()
	Run(t, func(testing.TB) *Harness { return newFake("").harness() })
}

// TestWrongSinksAreFound runs, for each way to break the contract, the rule that must find it.
func TestWrongSinksAreFound(t *testing.T) {
	t.Parallel()
	for bug, name := range map[string]string{
		"other order":                    "accepts in order",
		"loses the last":                 "accepts in order",
		"accepts twice":                  "accepts in order",
		"only says that it accepted":     "accepts in order",
		"nil errors instead of nil":      "accepts in order",
		"an answer to nothing":           "nothing to do",
		"ends payloads with a newline":   "payload byte for byte",
		"empty payload for NULL":         "payload byte for byte",
		"empty column for NULL":          "NULL is left out",
		"forgets a column":               "NULL is left out",
		"one lane at a time":             "several lanes",
		"counts in the batch":            "batch is borrowed",
		"keeps the batch":                "batch is borrowed",
		"an error too few":               "permanent",
		"goes on behind a failure":       "permanent",
		"fails what stands behind":       "permanent",
		"permanent is only refused":      "permanent",
		"one condemns all":               "permanent",
		"tells the payload":              "permanent",
		"refused is permanent":           "refused",
		"refused is unavailable":         "refused",
		"away is refused":                "away",
		"away is waited for":             "away",
		"late":                           "hang",
		"a time-out is refused":          "hang",
		"keeps what timed out":           "hang",
		"a topic away is refused":        "topic away",
		"a topic away is all away":       "topic away",
		"a topic away is of two classes": "topic away",
		"a topic away stops all":         "topic away",
		"knows without asking":           "topic away",
		"goes on in the other topic":     "topic away",
		"accepts what is away":           "topic away",
		"asks in every call":             "topic put off",
		"puts off without a time":        "topic put off",
		"puts off for minutes":           "topic put off",
		"puts off slowly":                "topic put off",
		"puts off all":                   "topic put off",
		"never asks again":               "topic put off",
		"sends though the context ended": "context ended",
		"refuses repetitions":            "repetitions",
		"drops what it knows":            "new is no repetition",

		"check sends a message":            "check: all is there",
		"check leaves a topic out":         "check: all is there",
		"check has no word for topics":     "check: all is there",
		"check changes its topics":         "check: all is there",
		"check has a remedy for nothing":   "check: all is there",
		"check does not dial":              "check: away",
		"check waits for what is away":     "check: away",
		"check calls all refusals a login": "check: away",
		"check remembers what was away":    "check: away",
		"check is late":                    "check: hang",
		"check stops at a missing topic":   "check: missing topic",
		"check makes topics":               "check: missing topic",
		"check finds all topics":           "check: missing topic",
		"check hides a refused login":      "check: refused login",
		"check goes on after its context":  "check: context ended",
		"check drops what is sent":         "check: beside Deliver",
		"check leaves a goroutine":         "check: leaves nothing running",
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			for _, r := range slices.Concat(rules, checkRules) {
				if r.name != name {
					continue
				}
				rec := &recorder{TB: t}
				done := make(chan struct{})
				go func() { // which Fatal ends
					defer close(done)
					r.check(rec, newFake(bug).harness())
				}()
				<-done
				if len(rec.failures) == 0 {
					t.Fatalf("rule %q noticed nothing", r.name)
				}
				t.Log(rec.failures[0])
				return
			}
			t.Errorf("no rule %q", name)
		})
	}
}

// recorder is a testing.TB that notes failures instead of failing.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failures []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) Error(args ...any) { r.Errorf("%s", fmt.Sprint(args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

// fake is a sink together with its destination. It follows the contract except for its bug.
type fake struct {
	bug   string
	other chan struct{} // with the bug "one lane at a time", whether another Deliver is running

	topics sinks.Away[string]

	mu      sync.Mutex
	log     []*outbox.Event
	away    bool
	gone    string        // the topic that is away
	found   bool          // with the bug "never asks again", that it was found away
	hanging chan struct{} // nil: it does not
	login   string        // "wrong": the destination refuses it
	was     error         // with the bug "check remembers what was away", what it remembers
	late    []sinks.Message
}

func newFake(bug string) *fake { return &fake{bug: bug, other: make(chan struct{})} }

func (f *fake) harness() *Harness {
	mark := func(word string) func(*sinks.Message) {
		return func(m *sinks.Message) { m.Event.EventType = word }
	}
	return &Harness{
		Sink: f, Received: f.received, Topic: "topic", Away: f.goAway, Hang: f.hang, TopicAway: f.takeAway,
		Permanent: mark("permanent"), Refuse: mark("refuse"), MissingTopic: f.missing, WrongLogin: f.stranger, awayWithin: 300 * time.Millisecond,
	}
}

func (f *fake) goAway() func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = true
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.away = false
	}
}

func (f *fake) takeAway(m *sinks.Message) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone, m.Topic = "other topic", "other topic"
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.gone = ""
	}
}

func (f *fake) hang() func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hanging = make(chan struct{})
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		close(f.hanging)
		f.hanging = nil
		for i := range f.late {
			f.accept(&f.late[i])
		}
	}
}

func (f *fake) received() (all []Received) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.log {
		r := Received{ID: e.ID, Payload: e.Payload, Columns: make(map[string]string)}
		for name, value := range map[string]string{
			"tenant_id": e.TenantID, "correlation_id": e.CorrelationID, "causation_id": e.CausationID,
		} {
			if value != "" || f.bug == "empty column for NULL" {
				r.Columns[name] = value
			}
		}
		if f.bug == "forgets a column" {
			delete(r.Columns, "causation_id")
		}
		all = append(all, r)
	}
	return all
}

func (f *fake) accept(m *sinks.Message) {
	e := m.Event
	if f.bug != "keeps the batch" && f.bug != "keeps what timed out" {
		e = clone([]sinks.Message{*m})[0].Event
	}
	switch {
	case f.bug == "ends payloads with a newline" && !bytes.HasSuffix(e.Payload, []byte("\n")):
		e.Payload = append(e.Payload, '\n')
	case f.bug == "empty payload for NULL" && e.Payload == nil:
		e.Payload = []byte{}
	}
	f.log = append(f.log, e)
	if f.bug == "accepts twice" {
		f.log = append(f.log, e)
	}
}

func (f *fake) Close() error { return nil }

func (f *fake) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		if f.bug == "an answer to nothing" {
			return []error{}
		}
		return nil
	}
	if f.bug == "one lane at a time" {
		select {
		case f.other <- struct{}{}:
		case <-f.other:
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
	if errs, over := f.unavailable(ctx, batch); over {
		return errs
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	errs, failed := make([]error, len(batch)), false
	behind := make(map[string]bool)
	for i := range batch {
		m := &batch[i]
		switch {
		case f.bug == "other order":
			m = &batch[len(batch)-1-i]
		case f.bug == "counts in the batch":
			m.Attempt++
		case f.bug == "loses the last" && i == len(batch)-1:
			continue
		}
		if behind[m.Event.AggregateID] && f.bug != "goes on behind a failure" && (f.bug != "goes on in the other topic" || m.Topic == f.gone) {
			errs[i] = sinks.ErrNotAttempted
			if f.bug == "fails what stands behind" {
				errs[i] = sinks.ErrPermanent
			}
			continue
		}
		known := slices.ContainsFunc(f.log, func(e *outbox.Event) bool { return e.ID == m.Event.ID })
		if known && f.bug == "drops what it knows" {
			continue
		}
		if errs[i] = f.verdict(m); known && f.bug == "refuses repetitions" {
			errs[i] = errors.New("it is there already")
		}
		if errs[i] == nil {
			errs[i] = f.topicOf(m)
		}
		if errs[i] != nil {
			behind[m.Event.AggregateID], failed = true, true
			continue
		}
		if f.bug == "only says that it accepted" {
			continue
		}
		f.accept(m)
	}
	switch {
	case failed && f.bug == "one condemns all":
		for i := range errs {
			errs[i] = sinks.ErrPermanent
		}
		f.log = nil
	case f.bug == "a topic away stops all" && slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, sinks.ErrTopicUnavailable) }):
		for i := range errs {
			errs[i] = sinks.ErrTopicUnavailable
		}
		f.log = nil
	case failed && f.bug == "an error too few":
		return errs[1:]
	case !failed && f.bug != "nil errors instead of nil":
		return nil
	}
	return errs
}

// verdict returns the answer of the destination to one message.
func (f *fake) verdict(m *sinks.Message) error {
	switch m.Event.EventType {
	case "permanent":
		switch f.bug {
		case "permanent is only refused":
			return errors.New("no")
		case "tells the payload":
			return fmt.Errorf("%w: %s", sinks.ErrPermanent, m.Event.Payload)
		}
		return sinks.ErrPermanent
	case "refuse":
		switch f.bug {
		case "refused is permanent":
			return sinks.ErrPermanent
		case "refused is unavailable":
			return sinks.ErrUnavailable
		}
		return errors.New("no")
	}
	return nil
}

// topicOf returns the error of a message whose topic is away.
func (f *fake) topicOf(m *sinks.Message) error {
	now := time.Now()
	if wait := f.topics.Wait(m.Topic, now); wait > 0 || f.bug == "never asks again" && f.found && m.Topic != "topic" {
		switch f.bug {
		case "accepts what is away":
			return nil
		case "asks in every call":
			return sinks.ErrTopicUnavailable
		case "puts off without a time":
			return sinks.ErrNotAttempted
		case "puts off for minutes":
			wait = time.Minute
		case "never asks again":
			wait = 50 * time.Millisecond
		case "puts off slowly":
			<-time.After(lateness + 100*time.Millisecond)
		}
		return sinks.PutOff(wait)
	}
	switch {
	case f.bug == "knows without asking" && m.Topic == "other topic":
		return sinks.PutOff(time.Millisecond)
	case m.Topic != f.gone:
		f.topics.Answered(m.Topic)
		return nil
	case f.bug == "a topic away is refused":
		return errors.New("no")
	case f.bug == "a topic away is all away":
		return sinks.ErrUnavailable
	case f.bug == "a topic away is of two classes":
		return fmt.Errorf("%w: %w", sinks.ErrTopicUnavailable, sinks.ErrUnavailable)
	case f.bug == "puts off all":
		f.topics.Found("topic", now)
	}
	f.topics.Found(m.Topic, now)
	f.found = true
	return sinks.ErrTopicUnavailable
}

// unavailable returns the errors if the destination is away or hangs, or if ctx has ended.
func (f *fake) unavailable(ctx context.Context, batch []sinks.Message) (errs []error, over bool) {
	f.mu.Lock()
	away, hanging := f.away, f.hanging
	f.mu.Unlock()
	err := sinks.ErrUnavailable
	switch {
	case ctx.Err() != nil:
		if f.bug == "sends though the context ended" {
			return nil, false
		}
	case away:
		if f.bug == "away is waited for" {
			<-ctx.Done()
		}
		if f.bug == "away is refused" {
			err = errors.New("no")
		}
	case hanging != nil:
		f.mu.Lock()
		f.late = slices.Clone(batch)
		if f.bug != "keeps what timed out" {
			f.late = clone(batch)
		}
		f.mu.Unlock()
		<-ctx.Done()
		if f.bug == "late" {
			time.AfterFunc(lateness+100*time.Millisecond, func() { close(f.other) })
			<-f.other
		}
		if f.bug == "a time-out is refused" {
			err = errors.New("no")
		}
	default:
		return nil, false
	}
	errs = make([]error, len(batch))
	for i := range errs {
		errs[i] = err
	}
	return errs, true
}
