package outbox

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// What the context says joins what the event says, and never replaces it.
func TestFill(t *testing.T) {
	t.Parallel()
	ctx := WithTraceParent(WithTenantID(WithCausationID(WithCorrelationID(t.Context(), "cor"), "cau"), "ten"), parent, `a=1,b="2`)
	const traced = `{"traceparent":"` + parent + `","tracestate":"a=1,b=\"2"`
	for _, test := range []struct {
		name string
		ctx  context.Context //nolint:containedctx // a case of the table
		in   Event
		want string // correlation causation tenant metadata
	}{
		{"nothing", t.Context(), Event{}, "   "},
		{"own, and nothing", t.Context(), Event{CorrelationID: "c", CausationID: "d", TenantID: "t", Metadata: []byte("{}")}, "c d t {}"},
		{"all", ctx, Event{}, "cor cau ten " + traced + "}"},
		{"own", ctx, Event{CorrelationID: "c", CausationID: "d", TenantID: "t", Metadata: []byte(`{"traceparent": null}`)}, `c d t {"traceparent": null}`},
		{"some", ctx, Event{CausationID: "d", Metadata: []byte(" {\n\"a\": {\"traceparent\": 1}}")}, "cor d ten " + traced + `,"a": {"traceparent": 1}}`},
		{"empty object", ctx, Event{Metadata: []byte("{ } ")}, "cor cau ten " + traced + "} "},
		{"no object", ctx, Event{Metadata: []byte(" [1]")}, "cor cau ten  [1]"},
		{"broken", ctx, Event{Metadata: []byte("{")}, "cor cau ten " + traced},
		{"set again", WithTraceParent(WithTenantID(ctx, ""), parent, ""), Event{}, `cor cau  {"traceparent":"` + parent + `"}`},
		{"a child", WithCausationID(ctx, "x"), Event{}, "cor x ten " + traced + "}"},
		{"no trace any more", WithTraceParent(ctx, "", "a=1"), Event{}, "cor cau ten "},
	} {
		events := []Event{test.in, {CorrelationID: "second"}}
		e := fill(test.ctx, events)[0]
		if got := fmt.Sprint(e.CorrelationID, " ", e.CausationID, " ", e.TenantID, " ", string(e.Metadata)); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.name, got, test.want)
		}
		if fmt.Sprint(events[0]) != fmt.Sprint(test.in) {
			t.Errorf("%s: what was given is changed to %+v", test.name, events[0])
		}
	}
}

func TestTraceParent(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		parent: true,
		"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":              true,
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-\"comes": true,
		parent + "-x": false,
		parent + "-":  false,
		"":            false,
		"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":                             false,
		"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":                             false,
		"00-00000000000000000000000000000000-b7ad6b7169203331-01":                             false,
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01":                             false,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1":                              false,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331":                                false,
		"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-a\x00":                       false,
		"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-\u00e9":                      false,
		"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-" + strings.Repeat("x", 500): false,
	} {
		if isTraceParent(s) != want {
			t.Errorf("%q: got %v", s, !want)
		}
	}
	for _, state := range []string{"a=\x00", "a=é", strings.Repeat("a", 513)} {
		e := fill(WithTraceParent(t.Context(), parent, state), []Event{{}})[0]
		if string(e.Metadata) != `{"traceparent":"`+parent+`"}` {
			t.Errorf("%q: got %s", state, e.Metadata)
		}
	}
}

// Insert takes it, and what comes of it is checked as what an event has of its own.
func TestInsertWithContext(t *testing.T) {
	t.Parallel()
	conn := pgtest.New(t).Conn(t)
	insert := func(ctx context.Context, events ...Event) error {
		return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return Insert(ctx, tx, events...) })
	}
	ctx := WithTraceParent(WithTenantID(WithCausationID(WithCorrelationID(t.Context(), "cor"), "cau"), "ten"), parent, "a=1")
	e := valid()
	// The event's own name comes last, escaped as it is, and jsonb keeps the last.
	e.Metadata = []byte(`{"tr\u0061ceparent": "own", "n": 1}`)
	if err := insert(ctx, valid(), e); err != nil {
		t.Fatal(err)
	}
	var got string
	err := conn.QueryRow(t.Context(), `select string_agg(concat_ws(' ', correlation_id, causation_id, tenant_id, metadata), E'\n' order by ctid) from event_outbox`).Scan(&got)
	want := `cor cau ten {"tracestate": "a=1", "traceparent": "` + parent + `"}` + "\n" +
		`cor cau ten {"n": 1, "tracestate": "a=1", "traceparent": "own"}`
	if err != nil || got != want {
		t.Errorf("got  %s\nwant %s\n%v", got, want, err)
	}
	err = insert(WithCorrelationID(ctx, strings.Repeat("x", 1025)), valid())
	if err == nil || err.Error() != "events[0].CorrelationID: has 1025 bytes, more than 1024" {
		t.Errorf("got %v", err)
	}
}
