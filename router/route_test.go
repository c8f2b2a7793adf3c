package router

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

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
