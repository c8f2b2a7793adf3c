package redisstream

import (
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var update = flag.Bool("update", false, "write the golden files")

// TestFields keeps names, order and text of an entry's fields, as consumers know them.
func TestFields(t *testing.T) {
	t.Parallel()
	fake := miniredis.RunT(t)
	s := newSink(t, Config{URL: "redis://" + fake.Addr()})
	at := time.Date(2026, 3, 1, 12, 30, 0, 123_456_000, time.FixedZone("", 2*3600))
	message := func(e outbox.Event) sinks.Message {
		return sinks.Message{
			Event: &e, Topic: "outbox.event.Order", Key: "not a field", LSN: pglogrepl.LSN(0x16B374D848), Index: 7,
			CommitTime: at.Add(time.Second), Attempt: 3,
		}
	}
	retries := 3
	batch := []sinks.Message{
		message(outbox.Event{
			ID: "0190f5a0-0000-7000-8000-000000000001", AggregateType: "Order", AggregateID: "order-1", EventType: "OrderPlaced",
			EventVersion: 2, Payload: []byte(`{"total": 1.50}`), CreatedAt: at, MaxRetries: &retries,
			Metadata: json.RawMessage(`{"user": "u-1", "content_type": "application/vnd.order+json",` +
				` "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b"}`),
			TenantID: "tenant-1", CorrelationID: "correlation-1", CausationID: "causation-1",
		}),
		message(outbox.Event{ID: "2", AggregateType: "Order", AggregateID: "order-2"}),
		message(outbox.Event{ID: "3", AggregateType: "Order", AggregateID: "order-3", EventType: "OrderEmptied", Payload: []byte{}}),
	}
	if errs := deliver(t, s, batch...); errs != nil {
		t.Fatal(errs)
	}
	entries, err := fake.Stream("outbox.event.Order")
	if err != nil {
		t.Fatal(err)
	}
	var fields [][]string
	for _, e := range entries {
		fields = append(fields, e.Values)
	}
	got, err := json.MarshalIndent(fields, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/fields.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Error(diff)
	}
}

// TestBatchIsLetGo: what is kept for the next Deliver refers to no message.
func TestBatchIsLetGo(t *testing.T) {
	t.Parallel()
	fake := miniredis.RunT(t)
	s := newSink(t, Config{URL: "redis://" + fake.Addr()})
	if errs := deliver(t, s, messages("s", 5000, 7)...); errs != nil {
		t.Fatal(errs)
	}
	if errs := deliver(t, s, messages("s", 100, 7)...); errs != nil {
		t.Fatal(errs)
	}
	n := s.free[0].nodes[0]
	if len(n.commands) > 200 {
		t.Errorf("%d commands are kept of a batch of 5000", len(n.commands))
	}
	for _, c := range n.commands {
		for _, arg := range c.args[:cap(c.args)] {
			if arg != nil {
				t.Fatalf("an argument is kept: %v", arg)
			}
		}
	}
}

// TestContentType: the field is there if the metadata or the configuration say it.
func TestContentType(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ metadata, configured, want string }{
		{`{}`, "", ""},
		{`{}`, "application/avro", "application/avro"},
		{`{"content_type": "a/b"}`, "application/avro", "a/b"},
	} {
		m := message("s", "o-1", "1", 10)
		m.Event.Metadata = json.RawMessage(c.metadata)
		var e entry
		e.begin(&m, c.configured)
		add := newCommand()
		add.add(&e, &trimming{})
		got := ""
		for i, arg := range add.args[:len(add.args)-1] {
			if arg == "content_type" {
				got = *add.args[i+1].(*string)
			}
		}
		if got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
