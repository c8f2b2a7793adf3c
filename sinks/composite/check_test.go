package composite

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// checked is a member that is found to be as its fields say.
type checked struct {
	fake
	err     error
	missing string // the topic that it has not got
}

func (c *checked) Check(ctx context.Context, topics []string) (found []sinks.TopicCheck, err error) {
	if c.hangs {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	for _, topic := range topics {
		f := sinks.TopicCheck{Kind: "topic", Topic: topic}
		if topic == c.missing {
			f.Err = errors.New("it does not exist")
		}
		found = append(found, f)
	}
	return found, c.err
}

// One member that can be used is enough. Tell hears of the others.
func TestCheck(t *testing.T) {
	t.Parallel()
	away := sinks.RefusedLogin(errors.New("refused"))
	for name, test := range map[string]struct {
		first, second sinks.Sink
		want          string // the error
		away          string // by member
	}{
		"all are well":                   {&checked{}, &checked{}, "", "first:false second:false"},
		"one is away":                    {&checked{err: away}, &checked{}, "", "first:true second:false"},
		"a topic of one is missing":      {&checked{}, &checked{missing: "own"}, "", "first:false second:true"},
		"one cannot be checked":          {&checked{err: away}, &fake{}, "", "first:true second:false"},
		"one hangs":                      {&checked{}, &checked{fake: fake{hangs: true}}, "", "first:false second:true"},
		"both are away":                  {&checked{err: away}, &checked{missing: "own"}, `first: refused; second: topic "own": it does not exist`, "first:true second:true"},
		"the second one refuses a login": {&checked{missing: "own"}, &checked{err: away}, `first: topic "own": it does not exist; second: refused`, "first:true second:true"},
	} {
		synctest.Test(t, func(t *testing.T) {
			told := map[string]bool{}
			member := func(name string, s sinks.Sink) Member {
				return Member{Name: name, Sink: s, Topics: []string{"own"}, Tell: func(a Answer) { told[name] = a.Away }}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := NewAny(member("first", test.first), member("second", test.second)).Check(ctx, nil)
			if got := fmt.Sprintf("first:%t second:%t", told["first"], told["second"]); got != test.away {
				t.Errorf("%s: away are %s, want %s", name, got, test.away)
			}
			switch {
			case (err == nil) != (test.want == "") || err != nil && err.Error() != test.want:
				t.Errorf("%s: got error %v, want %q", name, err, test.want)
			case err != nil && !sinks.IsRefusedLogin(err):
				t.Errorf("%s: one member refuses the login, and the error does not say so", name)
			}
		})
	}
}

// A topic is there if one member that can be used has it.
func TestCheckOfTopics(t *testing.T) {
	t.Parallel()
	a := NewAny(
		Member{Name: "away", Sink: &checked{err: errors.New("refused")}},
		Member{Name: "first", Sink: &checked{missing: "a"}},
		Member{Name: "second", Sink: &checked{missing: "b"}},
	)
	found, err := a.Check(t.Context(), []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	want := []sinks.TopicCheck{{Kind: "topic", Topic: "a"}, {Kind: "topic", Topic: "b"}}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
}

// A check that the session has ended says nothing of the members.
func TestCheckIsCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := NewAny(Member{Name: "m", Sink: &checked{err: errors.New("refused")}, Tell: func(Answer) { t.Error("a member is told of") }})
	if _, err := a.Check(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
