package composite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// fake answers by event id, follows the contract for later messages of an aggregate, and remembers what it has accepted.
type fake struct {
	name     string
	errs     map[string]error
	hangs    bool
	accepted []string
	news     []string // the messages that were New
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
	var b sinks.Batch
	b.Begin(batch)
	for i, m := range batch {
		if m.New {
			f.news = append(f.news, m.Event.ID)
		}
		switch err := f.errs[m.Event.ID]; {
		case sinks.IsUncertain(err):
			b.Lose(i, err)
		case err != nil || b.Blocked(i):
			b.Fail(i, err)
		default:
			f.accepted = append(f.accepted, m.Topic+"/"+m.Event.ID)
		}
	}
	return b.Errors()
}

func (f *fake) Close() error {
	f.closed = true
	return errors.New("late")
}

func memberOf(f *fake) Member {
	return Member{Name: f.name, Sink: f, Address: func(e *outbox.Event) (string, string) { return f.name, e.AggregateID }}
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
	type answers = map[string]error
	for _, test := range []struct {
		name          string
		first, second answers
		accepted      string // by the first; by the second
		errs          string // for each message
	}{
		{"the first accepts", nil, nil, "a1 a2 b1; ", ""},
		{"what fails goes on with what stands behind", answers{"a1": errAway}, nil, "b1; a1 a2", ""},
		{"a prefix stays", answers{"a2": errRefused}, nil, "a1 b1; a2", ""},
		{"both are away", answers{"a1": errAway}, answers{"a1": errAway}, "b1; ", "away, not attempted, ok"},
		{"permanent where all say so", answers{"a1": errPermanent}, answers{"a1": errPermanent}, "b1; ", "permanent, not attempted, ok"},
		{"not permanent where one was not asked", answers{"a1": errRefused}, answers{"a2": errPermanent}, "b1; a1", "ok, refused, ok"},
		{"one behind fails elsewhere", answers{"a1": errAway}, answers{"a2": errRefused}, "b1; a1", "ok, refused, ok"},
		{"put off where one was not asked", answers{"a1": errRefused}, answers{"a2": errPutOff}, "b1; a1", "ok, not attempted in 20s, ok"},
		{"all unknown", answers{"a1": errAway, "a2": errAway}, answers{"a1": errAway}, "b1; ", "away, away, ok"},
		{"unknown at the first only", answers{"a1": errAway, "a2": errAway}, answers{"a1": errRefused}, "b1; ", "refused maybe, away, ok"},
		{"one topic is away at both", answers{"a1": errTopic}, answers{"a1": errTopic}, "b1; ", "topic away, not attempted, ok"},
	} {
		first, second := &fake{name: "first", errs: test.first}, &fake{name: "second", errs: test.second}
		errs, members := NewAny(memberOf(first), memberOf(second)).DeliverBy(t.Context(), batch("a1", "a2", "b1"))
		if got := strings.ReplaceAll(strings.Join(first.accepted, " "), "first/", "") + "; " +
			strings.ReplaceAll(strings.Join(second.accepted, " "), "second/", ""); got != test.accepted {
			t.Errorf("%s: accepted %q, want %q", test.name, got, test.accepted)
		}
		if got := strings.Join(classes(errs), ", "); got != test.errs {
			t.Errorf("%s: %s (%v), want %s", test.name, got, errs, test.errs)
		}
		for i, m := range batch("a1", "a2", "b1") {
			want := ""
			switch {
			case slices.Contains(first.accepted, "first/"+m.Event.ID):
				want = "first"
			case slices.Contains(second.accepted, "second/"+m.Event.ID):
				want = "second"
			}
			if members[i] != want {
				t.Errorf("%s: %s was accepted by %q, want %q", test.name, m.Event.ID, members[i], want)
			}
		}
	}
	if errs, members := NewAny(memberOf(&fake{})).DeliverBy(t.Context(), nil); errs != nil || members != nil {
		t.Errorf("nothing to do: %v, %v", errs, members)
	}
}

var (
	errTopic   = fmt.Errorf("no such topic: %w", sinks.ErrTopicUnavailable)
	errPutOff  = sinks.PutOff(20 * time.Second)
	errSoon    = sinks.PutOff(5 * time.Second)
	errBusy    = sinks.After(7*time.Second, errAway)
	errLimited = sinks.After(9*time.Second, errRefused)
)

// Two members have failed. The most hopeful error prevails, whoever gave it.
func TestAnyHopes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		one, other error
		want       string
	}{
		{errRefused, errRefused, "refused"},
		{errRefused, errTopic, "refused maybe"},
		{errRefused, errAway, "refused maybe"},
		{errRefused, errPermanent, "refused"},
		{errRefused, errPutOff, "refused"}, // due by its backoff, not in 20 s
		{errTopic, errTopic, "topic away"},
		{errTopic, errAway, "topic away"},
		{errTopic, errPermanent, "topic away"},
		{errTopic, errPutOff, "topic away"},
		{errAway, errPermanent, "away"},
		{errAway, errPutOff, "topic away"}, // the second one may be back before 20 s have passed
		{errPermanent, errPermanent, "permanent"},
		{errPermanent, errPutOff, "not attempted in 20s"},
		{errPutOff, errSoon, "not attempted in 5s"},
		{errBusy, errAway, "away"},
		{errBusy, errPutOff, "topic away in 7s"},
		{errBusy, errPermanent, "away in 7s"},
		{errLimited, errBusy, "refused in 7s maybe"},
		{errLimited, errRefused, "refused"},
	} {
		for _, errs := range [][2]error{{test.one, test.other}, {test.other, test.one}} {
			first, second := &fake{errs: map[string]error{"a1": errs[0]}}, &fake{errs: map[string]error{"a1": errs[1]}}
			got := NewAny(memberOf(first), memberOf(second)).Deliver(t.Context(), batch("a1"))
			if class := strings.Join(classes(got), ""); class != test.want {
				t.Errorf("%v: %s (%v), want %s", errs, class, got, test.want)
			}
		}
	}
}

// A message that a member may have accepted is not New for the next member: both may lead to the same destination.
func TestAnyRepeats(t *testing.T) {
	t.Parallel()
	first := &fake{name: "first", errs: map[string]error{"a1": errAway, "b1": errRefused, "c1": errTopic}}
	second := &fake{name: "second"}
	messages := batch("a1", "b1", "c1", "d1")
	for i := range messages {
		messages[i].New = true
	}
	NewAny(memberOf(first), memberOf(second)).Deliver(t.Context(), messages)
	if want := []string{"a1", "b1", "c1", "d1"}; !slices.Equal(first.news, want) {
		t.Errorf("new at the first: %v, want %v", first.news, want)
	}
	if want := []string{"b1"}; !slices.Equal(second.news, want) {
		t.Errorf("new at the second: %v, want %v", second.news, want)
	}
}

// What is told of a member is what its last answer says.
func TestAnyTells(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(t.Context())
	end()
	for _, test := range []struct {
		name string
		ctx  context.Context //nolint:containedctx // a case of the table
		errs map[string]error
		want string
	}{
		{"accepted", t.Context(), nil, "[{2 false false}]"},
		{"one accepted", t.Context(), map[string]error{"a1": errAway}, "[{1 false false}]"},
		{"one refused", t.Context(), map[string]error{"a1": errAway, "b1": errRefused}, "[{0 false false}]"},
		{"topic away", t.Context(), map[string]error{"a1": errTopic, "b1": errAway}, "[{0 false false}]"},
		{"away", t.Context(), map[string]error{"a1": errAway, "b1": errAway}, "[{0 true false}]"},
		{"one away, one put off", t.Context(), map[string]error{"a1": errAway, "b1": errPutOff}, "[{0 true false}]"},
		{"put off", t.Context(), map[string]error{"a1": errPutOff, "b1": errPutOff}, "[]"},
		{"the connector stops", ended, map[string]error{"a1": errAway, "b1": errAway}, "[]"},
	} {
		var told []Answer
		m := memberOf(&fake{name: "one", errs: test.errs})
		m.Tell = func(a Answer) { told = append(told, a) }
		NewAny(m, memberOf(&fake{name: "other"})).Deliver(test.ctx, batch("a1", "b1"))
		if got := fmt.Sprint(told); got != test.want {
			t.Errorf("%s: told %s, want %s", test.name, got, test.want)
		}
	}
}

// classes describes each error: its class, the time that it gives, and whether the message may have been accepted although it was
// refused.
func classes(errs []error) (out []string) {
	for _, err := range errs {
		var text string
		switch {
		case err == nil:
			text = "ok"
		case errors.Is(err, sinks.ErrNotAttempted):
			text = "not attempted"
		case errors.Is(err, sinks.ErrPermanent):
			text = "permanent"
		case errors.Is(err, sinks.ErrUnavailable):
			text = "away"
		case errors.Is(err, sinks.ErrTopicUnavailable):
			text = "topic away"
		default:
			text = "refused"
		}
		if wait := sinks.RetryAfter(err); wait > 0 {
			text += " in " + wait.String()
		}
		if sinks.IsUncertain(err) && strings.HasPrefix(text, "refused") {
			text += " maybe"
		}
		out = append(out, text)
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
