package router

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

func TestFits(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, s string
		want       bool
	}{
		{"payment.*", "payment.made", true},
		{"payment.*", "payment.", true},
		{"payment.*", "payment", false},
		{"payment.*", "prepayment.made", false},
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"*.made", "order/payment.made", true},
		{"*a*b*c", "xaybzbc", true},
		{"*a*b*c", "xaybzb", false},
		{"a?c", "abc", true},
		{"a?c", "aüc", true},
		{"a?c", "ac", false},
		{"ü*", "über", true},
		{"*é", "café", true},
		{"a[b]", "a[b]", true},
		{"a[b]", "ab", false},
		{"**", "x", true},
		{"x**", "x", true},
	} {
		if got := fits(test.pattern, test.s); got != test.want {
			t.Errorf("fits(%q, %q) = %t", test.pattern, test.s, got)
		}
	}
}

// FuzzFits compares with path.Match, which has the same stars and question marks, on what has none of its other signs.
func FuzzFits(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add("**é?*", "caféx")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if strings.ContainsAny(pattern+s, `/[]\`) {
			return
		}
		want, err := path.Match(pattern, s)
		if err != nil {
			t.Fatal(err)
		}
		if got := fits(pattern, s); got != want {
			t.Errorf("fits(%q, %q) = %t, path.Match says %t", pattern, s, got, want)
		}
	})
}

func TestFirstRouteWins(t *testing.T) {
	t.Parallel()
	to := func(processors ...int32) (sinks []Sink) {
		for _, p := range processors {
			sinks = append(sinks, Sink{Processor: p, Topic: mustParse(t, fmt.Sprintf("%d.{event_type}", p))})
		}
		return sinks
	}
	r := New([]Route{
		{Match{EventType: []string{"payment.*", "refund"}, TenantID: []string{"acme"}}, to(1, 2)},
		{Match{AggregateType: []string{"invoice"}}, nil},
		{Match{EventType: []string{"payment.*"}}, to(3)},
	})
	for _, test := range []struct {
		event outbox.Event
		want  []Target
	}{
		{outbox.Event{EventType: "payment.made", TenantID: "acme"}, []Target{{Processor: 1, Topic: "1.payment.made"}, {Processor: 2, Topic: "2.payment.made"}}},
		{outbox.Event{EventType: "refund", TenantID: "acme"}, []Target{{Processor: 1, Topic: "1.refund"}, {Processor: 2, Topic: "2.refund"}}},
		{outbox.Event{EventType: "payment.made", TenantID: "other"}, []Target{{Processor: 3, Topic: "3.payment.made"}}},
		{outbox.Event{EventType: "payment.made", AggregateType: "invoice"}, nil},
		{outbox.Event{EventType: "refund"}, nil},
	} {
		if diff := cmp.Diff(test.want, r.Route(&test.event, nil)); diff != "" {
			t.Errorf("%+v: -want +got:\n%s", test.event, diff)
		}
	}
}
