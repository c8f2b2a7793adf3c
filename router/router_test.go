package router

import (
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

func TestAggregateHashIsStored(t *testing.T) {
	t.Parallel()
	// Ledgers contain these hashes. If they changed, every aggregate with an event in flight could lose its order.
	for _, test := range []struct {
		aggregateType, aggregateID string
		want                       int64
	}{
		{"", "", 3803688792395291579},
		{"order", "42", 2834507424862468577},
		{"Übung", "日本", -3386937212294132847},
		{strings.Repeat("t", 100), strings.Repeat("i", 100), 7601872005044649032},
	} {
		if got := AggregateHash(test.aggregateType, test.aggregateID); got != test.want {
			t.Errorf("AggregateHash(%q, %q) = %d, want %d", test.aggregateType, test.aggregateID, got, test.want)
		}
	}
	if AggregateHash("ab", "c") == AggregateHash("a", "bc") {
		t.Error("the border between type and id makes no difference")
	}
}

func TestLane(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		hash        int64
		lanes, want int
	}{
		{0, 4, 0},
		{7, 4, 3},
		{-7, 4, 3},
		{-8, 4, 0},
		{5, 1, 0},
		{math.MinInt64, 4, 0},
		{math.MinInt64, 7, 1},
		{math.MinInt64, 10, 8},
		{math.MaxInt64, 10, 7},
	} {
		if got := Lane(test.hash, test.lanes); got != test.want {
			t.Errorf("Lane(%d, %d) = %d, want %d", test.hash, test.lanes, got, test.want)
		}
	}
}

var event = &outbox.Event{
	ID: "0197", AggregateType: "order", AggregateID: "42", EventType: "order.paid", EventVersion: 3,
	TenantID: "acme", CorrelationID: "c1", CausationID: "c0",
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ template, want string }{
		{"", ""},
		{"events", "events"},
		{"{aggregate_id}", "42"},
		{"outbox.event.{aggregate_type}", "outbox.event.order"},
		{
			"{id}/{aggregate_type}/{aggregate_id}/{event_type}/{event_version}/{tenant_id}/{correlation_id}/{causation_id}!",
			"0197/order/42/order.paid/3/acme/c1/c0!",
		},
		{"{tenant_id}{tenant_id}", "acmeacme"},
		{strings.Repeat("long.", 40) + "{id}", strings.Repeat("long.", 40) + "0197"},
	} {
		parsed, err := ParseTemplate(test.template)
		if err != nil {
			t.Errorf("%q: %v", test.template, err)
			continue
		}
		if got := parsed.Expand(event); got != test.want {
			t.Errorf("%q = %q, want %q", test.template, got, test.want)
		}
	}
	version, err := ParseTemplate("v{event_version}")
	if err != nil {
		t.Fatal(err)
	}
	if got := version.Expand(&outbox.Event{}); got != "v1" {
		t.Errorf("version 0 = %q, want v1", got)
	}
}

// The value of a field stays within one segment of a path or one value of a query. A value that could change the path is
// replaced by a character that no sink sends.
func TestTemplateThatIsAURL(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ template, value, want string }{
		{"https://h.example/{tenant_id}/x?t={tenant_id}#f", "A-z0._~ é@b", "https://h.example/A-z0._~%20%C3%A9%40b/x?t=A-z0._~%20%C3%A9%40b#f"},
		{"https://h.example/{tenant_id}/x?t={tenant_id}#f", "../..?q#&%é\n", "https://h.example/%00/x?t=..%2F..%3Fq%23%26%25%C3%A9%0A#f"},
		{"https://h.example/{tenant_id}", `..\..\admin`, "https://h.example/%00"},
		{"https://h.example/{tenant_id}", "%2e%2e", "https://h.example/%00"},
		{"https://h.example/{tenant_id}", "..;", "https://h.example/%00"},
		{"https://h.example/{tenant_id}", "\uff0e\uff0e", "https://h.example/%00"},
		{"https://h.example/{tenant_id}", "\xc0\xae", "https://h.example/%00"},
		{"https://h.example/{tenant_id}", "日本", "https://h.example/%E6%97%A5%E6%9C%AC"},
		{"https://h.example/{tenant_id}", "", "https://h.example/%00"},
		{"https://h.example/{tenant_id}{causation_id}/", "", "https://h.example/%00/"},
		{"https://h.example/a{tenant_id}/{causation_id}b?{tenant_id}", "", "https://h.example/a/b?"},
		{"https://h.example/{tenant_id}?x", "", "https://h.example/%00?x"},
		{"http://{tenant_id}", "a/b", "http://%00"},
		{"x-https://{tenant_id}", "../..?q#&% é\n", "x-https://../..?q#&% é\n"},
	} {
		parsed := mustParse(t, test.template)
		if got := parsed.Expand(&outbox.Event{TenantID: test.value}); got != test.want {
			t.Errorf("%q with %q = %q, want %q", test.template, test.value, got, test.want)
		}
	}
}

// If a topic is not a URL, the values of an event cannot make it one, and so choose the URL of a webhook.
func TestTopicThatBecomesAURL(t *testing.T) {
	t.Parallel()
	e := &outbox.Event{AggregateType: "http", EventType: "http://h/admin?all=1", AggregateID: "https://h/1"}
	for template, want := range map[string]string{
		"{event_type}":                "http%3A//h/admin?all=1",
		"{aggregate_id}{event_type}":  "https%3A//h/1http://h/admin?all=1",
		"{aggregate_type}://h/x":      "http%3A//h/x",
		"h{causation_id}ttp://h/x":    "http%3A//h/x",
		"events.{event_type}":         "events.http://h/admin?all=1",
		"https://h/{aggregate_type}":  "https://h/http",
		"https://h/?x={aggregate_id}": "https://h/?x=https%3A%2F%2Fh%2F1",
	} {
		topic, err := ParseTopic(template)
		if err != nil {
			t.Fatal(err)
		}
		if got := topic.Expand(e); got != want {
			t.Errorf("topic %s: %s, want %s", template, got, want)
		}
	}
	key, err := ParseTemplate("{aggregate_id}")
	if err != nil {
		t.Fatal(err)
	}
	if got := key.Expand(e); got != e.AggregateID {
		t.Errorf("the key is %s", got)
	}
}

func TestTemplateMistakes(t *testing.T) {
	t.Parallel()
	const fields = "an event has id, aggregate_type, aggregate_id, event_type, event_version, tenant_id, correlation_id, causation_id"
	for _, test := range []struct{ template, want string }{
		{"a.{kind}", `template "a.{kind}": unknown field "kind"; ` + fields},
		{"{payload}", `template "{payload}": unknown field "payload"; ` + fields},
		{"{}", `template "{}": unknown field ""; ` + fields},
		{"{{id}}", `template "{{id}}": unknown field "{id"; ` + fields},
		{"a{id", `template "a{id": unbalanced brace before "{id"`},
		{"a}b", `template "a}b": unbalanced brace before "}b"`},
	} {
		_, err := ParseTemplate(test.template)
		if err == nil || err.Error() != test.want {
			t.Errorf("%q:\n got %v\nwant %s", test.template, err, test.want)
		}
	}
}

func mustParse(t testing.TB, s string) Template {
	t.Helper()
	parsed, err := ParseTemplate(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestRoute(t *testing.T) {
	t.Parallel()
	r := New([]Route{{Sinks: []Sink{
		{Processor: 7, Topic: mustParse(t, "outbox.event.{aggregate_type}"), Key: mustParse(t, "{aggregate_id}")},
		{Processor: 9, Topic: mustParse(t, "{event_type}.{event_type}"), Key: mustParse(t, "")},
	}}})
	into := []Target{{Processor: 1}}
	other := &outbox.Event{AggregateType: "user", AggregateID: "1", EventType: "left"}
	for range 2 { // the second time from memory
		got := r.Route(other, r.Route(event, into))
		want := []Target{
			{Processor: 1},
			{Processor: 7, Topic: "outbox.event.order", Key: "42"},
			{Processor: 9, Topic: "order.paid.order.paid"},
			{Processor: 7, Topic: "outbox.event.user", Key: "1"},
			{Processor: 9, Topic: "left.left"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

func TestExpansionsAreBounded(t *testing.T) {
	t.Parallel()
	r := New([]Route{{Sinks: []Sink{{Topic: mustParse(t, "t.{event_type}")}}}})
	for i := range 3 * maxExpansions {
		e := &outbox.Event{EventType: strconv.Itoa(i)}
		if got := r.Route(e, nil); got[0].Topic != "t."+e.EventType {
			t.Fatalf("topic %q for event type %s", got[0].Topic, e.EventType)
		}
	}
	if n := len(r.routes[0].sinks[0].topic.known); n > maxExpansions {
		t.Errorf("%d expansions kept, want %d at most", n, maxExpansions)
	}
	clear(r.routes[0].sinks[0].topic.known)
	r.Route(&outbox.Event{EventType: strings.Repeat("x", maxExpansionSize)}, nil)
	if n := len(r.routes[0].sinks[0].topic.known); n != 0 {
		t.Errorf("%d expansions kept, want none that is long", n)
	}
}

func TestNoAllocation(t *testing.T) {
	r := New([]Route{{Sinks: []Sink{
		{Topic: mustParse(t, "outbox.event.{aggregate_type}"), Key: mustParse(t, "{aggregate_id}")},
		{Topic: mustParse(t, "events"), Key: mustParse(t, "{event_version}")},
	}}})
	targets := r.Route(event, nil)
	long := strings.Repeat("x", 1000)
	if n := testing.AllocsPerRun(100, func() {
		targets = r.Route(event, targets[:0])
		AggregateHash(event.AggregateType, long)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkRoute(b *testing.B) {
	r := New([]Route{{Sinks: []Sink{{Topic: mustParse(b, "outbox.event.{aggregate_type}"), Key: mustParse(b, "{aggregate_id}")}}}})
	var targets []Target
	b.ReportAllocs()
	for b.Loop() {
		targets = r.Route(event, targets[:0])
	}
}

func BenchmarkAggregateHash(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		AggregateHash("order", "0197a3c2-5d1e-7a4b-8c3d-2e1f0a9b8c7d")
	}
}
