package decoder

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

func newDecoder(t testing.TB, columns Columns, relation ...column) *Decoder {
	t.Helper()
	d := New(Table{OID: testOID, Columns: columns}, 1<<20)
	decode(t, d, relationMessage(testOID, relation...))
	return d
}

func decode(t testing.TB, d *Decoder, message []byte) Message {
	t.Helper()
	m, err := d.Decode(message)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// decodeRow decodes a row, and checks that the event shares no memory with the message.
func decodeRow(t testing.TB, d *Decoder, values ...string) Message {
	t.Helper()
	message := insertMessage(testOID, values...)
	m := decode(t, d, message)
	for i := range message {
		message[i] = '#'
	}
	return m
}

func TestTransaction(t *testing.T) {
	t.Parallel()
	d := New(Table{OID: testOID, Columns: DefaultColumns()}, 1<<20)
	const micros = 848_721_501_123_456 // since 2000
	at := time.Date(2026, 11, 23, 3, 58, 21, 123456000, time.UTC)
	for _, test := range []struct {
		name    string
		message []byte
		want    Message
	}{
		{"begin", beginMessage(0x16B374D848, micros, 771), Message{Kind: KindBegin, LSN: 0x16B374D848, CommitTime: at, Xid: 771}},
		{"relation", relationMessage(testOID, defaultRelation...), Message{Kind: KindRelation}},
		{"other relation", relationMessage(testOID+1, column{"x", pgtype.TextOID}), Message{Kind: KindRelation}},
		{"other insert", insertMessage(testOID+1, "1"), Message{Kind: KindInsert, Relation: testOID + 1}},
		{
			"commit", commitMessage(0x16B374D848, 0x16B374D880, micros),
			Message{Kind: KindCommit, LSN: 0x16B374D848, EndLSN: 0x16B374D880, CommitTime: at},
		},
		{"update", []byte("U..."), Message{}},
		{"delete", []byte("D..."), Message{}},
		{"truncate", []byte("T..."), Message{}},
		{"type", typeMessage(20000, "shop", "mood"), Message{}},
		{"origin", []byte("O..."), Message{}},
		{"logical message", []byte("M..."), Message{}},
	} {
		if diff := cmp.Diff(test.want, decode(t, d, test.message)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
	}
}

func TestInsert(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, DefaultColumns(), defaultRelation...)
	for _, test := range []struct {
		name string
		row  []string
		want outbox.Event
	}{
		{
			"everything",
			[]string{
				"0197a3c2-5d1e-7a4b-8c3d-2e1f0a9b8c7d", "order", "42", "order.paid", "12", "{\"a\": 1e400,\n \"a\":\"\\u0000 ü\"}",
				`{"user": "u"}`, "2026-11-24 03:58:21.123456+00", "10", "acme", "c1", "c0",
			},
			outbox.Event{
				ID: "0197a3c2-5d1e-7a4b-8c3d-2e1f0a9b8c7d", AggregateType: "order", AggregateID: "42", EventType: "order.paid",
				EventVersion: 12, Payload: []byte("{\"a\": 1e400,\n \"a\":\"\\u0000 ü\"}"), Metadata: []byte(`{"user": "u"}`),
				CreatedAt: time.Date(2026, 11, 24, 3, 58, 21, 123456000, time.UTC), MaxRetries: new(10),
				TenantID: "acme", CorrelationID: "c1", CausationID: "c0",
			},
		},
		{
			"nulls",
			[]string{"1", "order", "42", "order.paid", null, null, null, null, null, null, null, null},
			outbox.Event{ID: "1", AggregateType: "order", AggregateID: "42", EventType: "order.paid"},
		},
		{
			"empty texts",
			[]string{"1", "order", "", "", "-3", "", "", "infinity", "0", "", "", ""},
			outbox.Event{ID: "1", AggregateType: "order", EventVersion: -3, Payload: []byte{}, Metadata: []byte{}, MaxRetries: new(0)},
		},
	} {
		m := decodeRow(t, d, test.row...)
		if m.Kind != KindInsert || m.Invalid != nil {
			t.Errorf("%s: kind %d, invalid: %v", test.name, m.Kind, m.Invalid)
		}
		if diff := cmp.Diff(&test.want, m.Event); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
		size := eventSize
		for _, v := range test.row {
			if v != null {
				size += len(v)
			}
		}
		if m.Size != size {
			t.Errorf("%s: size %d, want %d", test.name, m.Size, size)
		}
	}
}

// A row of another table is no event. But it is an insert, so it counts for the index of the following inserts.
func TestRowOfAnotherTable(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, DefaultColumns(), defaultRelation...)
	decode(t, d, relationMessage(5, column{"n", pgtype.Int4OID}))
	m := decode(t, d, insertMessage(5, "1"))
	if m.Kind != KindInsert || m.Event != nil || m.Relation != 5 {
		t.Errorf("%+v, want an insert into 5 without an event", m)
	}
	if got := d.RelationName(m.Relation); got != "public.event_outbox" { // as relationMessage names every table
		t.Errorf("it is called %s", got)
	}
}

func TestMappedTable(t *testing.T) {
	t.Parallel()
	columns := Columns{ID: "key", AggregateType: "kind", AggregateID: "key", Payload: "body", TenantID: "tenant", CreatedAt: "at"}
	d := newDecoder(t, columns, column{"at", pgtype.TimestampOID}, column{"noise", pgtype.JSONOID}, column{"body", pgtype.ByteaOID},
		column{"kind", firstUserOID}, column{"tenant", pgtype.UUIDOID}, column{"key", pgtype.Int8OID})
	got := decodeRow(t, d, "2026-11-24 03:58:21", strings.Repeat("x", 100), `\x00ff4a`, "order", null, "77")
	want := Message{
		Kind: KindInsert,
		Event: &outbox.Event{
			ID: "77", AggregateType: "order", AggregateID: "77", Payload: []byte{0, 0xff, 'J'}, ContentType: "application/octet-stream",
			CreatedAt: time.Date(2026, 11, 24, 3, 58, 21, 0, time.UTC),
		},
		Size: eventSize + len("77order77") + 3 + len("2026-11-24 03:58:21"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	empty := decodeRow(t, d, null, null, `\x`, "order", null, "78").Event.Payload
	if empty == nil || len(empty) > 0 {
		t.Errorf("empty bytea: %#v, want an empty payload that is not nil", empty)
	}
	if p := decodeRow(t, d, null, null, null, "order", null, "79").Event.Payload; p != nil {
		t.Errorf("null bytea: %#v, want nil", p)
	}
}

func TestInvalidRows(t *testing.T) {
	t.Parallel()
	row := func(change map[field]string) []string {
		r := []string{"1", "order", "42", "paid", "1", "{}", "{}", null, null, "t", "c", "b"}
		for f, v := range change {
			r[f] = v
		}
		return r
	}
	whole := func(change func(e *outbox.Event)) *outbox.Event {
		e := &outbox.Event{
			ID: "1", AggregateType: "order", AggregateID: "42", EventType: "paid", EventVersion: 1, Payload: []byte("{}"),
			Metadata: []byte("{}"), TenantID: "t", CorrelationID: "c", CausationID: "b",
		}
		change(e)
		return e
	}
	const limit = 100
	long := strings.Repeat("x", limit)
	for _, test := range []struct {
		name    string
		row     []string
		invalid string
		want    *outbox.Event
	}{
		{"no id", row(map[field]string{id: null}), "id is null", whole(func(e *outbox.Event) { e.ID = "" })},
		{"empty id", row(map[field]string{id: ""}), "id is empty", whole(func(e *outbox.Event) { e.ID = "" })},
		{
			"empty type", row(map[field]string{aggregateType: ""}), "aggregate_type is empty",
			whole(func(e *outbox.Event) { e.AggregateType = "" }),
		},
		{
			"nothing", row(map[field]string{id: null, aggregateType: null, aggregateID: null, eventType: null}),
			"id is null; aggregate_type is null; aggregate_id is null; event_type is null",
			whole(func(e *outbox.Event) { e.ID, e.AggregateType, e.AggregateID, e.EventType = "", "", "", "" }),
		},
		{
			"large payload", row(map[field]string{payload: long}), "the event takes 118 bytes, more than the 100 of max_event_bytes",
			whole(func(e *outbox.Event) { e.Payload = nil }),
		},
		{
			"large metadata", row(map[field]string{metadata: long}), "the event takes 118 bytes, more than the 100 of max_event_bytes",
			whole(func(e *outbox.Event) { e.Payload, e.Metadata = nil, nil }),
		},
		{
			"large id", row(map[field]string{id: long}), "the event takes 119 bytes, more than the 100 of max_event_bytes",
			&outbox.Event{EventVersion: 1},
		},
	} {
		d := New(Table{OID: testOID, Columns: DefaultColumns()}, limit)
		decode(t, d, relationMessage(testOID, defaultRelation...))
		m := decodeRow(t, d, test.row...)
		if m.Invalid == nil || m.Invalid.Error() != test.invalid {
			t.Errorf("%s: got %v, want %s", test.name, m.Invalid, test.invalid)
		}
		if diff := cmp.Diff(test.want, m.Event, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
		if m.Size > eventSize+limit {
			t.Errorf("%s: size %d is over the limit", test.name, m.Size)
		}
	}
}

func typeMessage(oid uint32, schema, name string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'Y'}, oid)
	return append(append(append(append(b, schema...), 0), name...), 0)
}

// The server announces types that are not built in. Errors show their names.
func TestTypesAreNamed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		announced []byte
		want      string
	}{
		{typeMessage(20000, "shop", "mood"), `column "payload" (payload) is of type shop.mood, it must be json, `},
		{typeMessage(20000, "", "text"), `column "payload" (payload) is of type domain over text, it must be json, `},
		{typeMessage(20001, "shop", "other"), `column "payload" (payload) is of type with OID 20000, it must be json, `},
	} {
		d := New(Table{OID: testOID, Columns: DefaultColumns()}, 1<<20)
		if m := decode(t, d, test.announced); m.Kind != KindIgnored {
			t.Errorf("a type is of kind %d", m.Kind)
		}
		_, err := d.Decode(drift("payload", column{"payload", 20000}))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
	d := New(Table{OID: testOID, Columns: DefaultColumns()}, 1<<20)
	for _, cut := range [][]byte{typeMessage(20000, "shop", "mood")[:9], append(typeMessage(20000, "shop", "mood"), 'x')} {
		if _, err := d.Decode(cut); err == nil {
			t.Errorf("%q is accepted", cut)
		}
	}
}

// drift changes one column of event_outbox, or drops it if the name is empty.
func drift(name string, to column) []byte {
	columns := slices.Clone(defaultRelation)
	at := slices.IndexFunc(columns, func(c column) bool { return c.name == name })
	columns[at] = to
	if to.name == "" {
		columns = slices.Delete(columns, at, at+1)
	}
	return relationMessage(testOID, columns...)
}

func TestSchemaDrift(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		columns Columns
		message []byte
		want    string // "" is no error
	}{
		{"unchanged", DefaultColumns(), relationMessage(testOID, defaultRelation...), ""},
		{"payload jsonb", DefaultColumns(), drift("payload", column{"payload", pgtype.JSONBOID}), ""},
		{"id of any type", DefaultColumns(), drift("id", column{"id", pgtype.NumericOID}), ""},
		{"enum", DefaultColumns(), drift("event_type", column{"event_type", 20000}), ""},
		{
			"optional and unmapped",
			Columns{ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", Payload: "payload"},
			drift("event_type", column{}), "",
		},
		{
			"renamed", DefaultColumns(), drift("payload", column{"body", pgtype.JSONOID}),
			`column "payload" (payload) is missing; it has id, aggregate_type, aggregate_id, event_type, event_version, body, metadata, ` +
				`created_at, max_retries, tenant_id, correlation_id, causation_id`,
		},
		{"dropped", DefaultColumns(), drift("tenant_id", column{}), `column "tenant_id" (tenant_id) is missing`},
		{
			"retyped", DefaultColumns(), drift("event_version", column{"event_version", pgtype.TextOID}),
			`column "event_version" (event_version) is of type text, it must be int2, int4 or int8`,
		},
		{
			"payload of a user's type", DefaultColumns(), drift("payload", column{"payload", 20000}),
			`column "payload" (payload) is of type with OID 20000, it must be json, jsonb, text, varchar or bytea`,
		},
		{
			"time as text", DefaultColumns(), drift("created_at", column{"created_at", pgtype.DateOID}),
			`column "created_at" (created_at) is of type date, it must be timestamptz or timestamp`,
		},
		{"all lost", DefaultColumns(), relationMessage(testOID), `column "causation_id" (causation_id) is missing; it has no columns; where it has none, write "" for event_version, metadata, `},
		{
			"unmapped",
			Columns{},
			relationMessage(testOID, defaultRelation...),
			"no column is named for id, which every event needs; no column is named for aggregate_type",
		},
	} {
		d := New(Table{OID: testOID, Columns: test.columns}, 1<<20)
		_, err := d.Decode(test.message)
		if test.want == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		var decodeError *Error
		if !errors.As(err, &decodeError) || decodeError.Kind != 'R' {
			t.Errorf("%s: got %v, want an *Error of 'R'", test.name, err)
			continue
		}
		for _, want := range []string{"the schema of public.event_outbox drifted: ", test.want, "; correct source.columns if the table is so now, else undo the change"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s:\n got %v\nwant %s", test.name, err, want)
			}
		}
	}
}

func TestColumnAddedInMidTransaction(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, DefaultColumns(), defaultRelation...)
	row := []string{"1", "order", "42", "paid", "1", "{}", "{}", null, null, null, null, null}
	decodeRow(t, d, row...)
	decode(t, d, relationMessage(testOID, append(slices.Clone(defaultRelation), column{"extra", pgtype.JSONOID})...))
	if got := decodeRow(t, d, append(row, "{}")...); got.Event.ID != "1" {
		t.Errorf("id %q, want 1", got.Event.ID)
	}
	if _, err := d.Decode(insertMessage(testOID, row...)); err == nil {
		t.Error("a row without the new column is accepted")
	}
}

func TestUndecodable(t *testing.T) {
	t.Parallel()
	row := []string{"1", "order", "42", "paid", "1", "{}", "{}", null, null, null, null, null}
	with := func(f field, v string) []byte {
		r := slices.Clone(row)
		r[f] = v
		return insertMessage(testOID, r...)
	}
	replaceKind := func(kind byte) []byte {
		b := insertMessage(testOID, row...)
		b[8] = kind
		return b
	}
	for _, test := range []struct {
		name    string
		message []byte
		want    string
	}{
		{"nothing", nil, "empty pgoutput message"},
		{"unknown", []byte("S123"), `pgoutput message 'S': unknown: it is not of protocol version 1`},
		{"short begin", beginMessage(1, 2, 3)[:20], `pgoutput message 'B': it ends too early`},
		{"long begin", append(beginMessage(1, 2, 3), 0), `pgoutput message 'B': 1 bytes are left over at its end`},
		{"short commit", commitMessage(1, 2, 3)[:25], `pgoutput message 'C': it ends too early`},
		{"long commit", append(commitMessage(1, 2, 3), 0, 0), `pgoutput message 'C': 2 bytes are left over at its end`},
		{"short relation", relationMessage(testOID, defaultRelation...)[:50], `pgoutput message 'R': it ends too early`},
		{"relation without names", []byte("R\x00\x00\x00\x01public"), `pgoutput message 'R': it ends too early`},
		{"unannounced", insertMessage(5, "1"), `pgoutput message 'I': row of relation 5, which was never announced`},
		{"short insert", []byte("I\x00\x00"), `pgoutput message 'I': it ends too early`},
		{"insert without columns", binary.BigEndian.AppendUint32([]byte{'I'}, testOID), `pgoutput message 'I': it ends too early`},
		{"old row", append(binary.BigEndian.AppendUint32([]byte{'I'}, testOID), 'O', 0, 0), `pgoutput message 'I': a new row begins with 'N', not 'O'`},
		{"too few columns", insertMessage(testOID, row[:11]...), `pgoutput message 'I': a row of 11 columns, the relation has 12`},
		{"too many columns", insertMessage(testOID, append(row, "x")...), `pgoutput message 'I': a row of 13 columns, the relation has 12`},
		{"unchanged", replaceKind('u'), `pgoutput message 'I': a new row has an unchanged value`},
		{"binary", replaceKind('b'), `pgoutput message 'I': a value is in binary format, which was not asked for`},
		{"unknown format", replaceKind('x'), `pgoutput message 'I': unknown format 'x' of a value`},
		{"left over", append(insertMessage(testOID, row...), 'x'), `pgoutput message 'I': 1 bytes are left over at its end`},
		{"version", with(eventVersion, "1.0"), `column "event_version": strconv.Atoi: parsing "1.0": invalid syntax`},
		{"retries", with(maxRetries, ""), `column "max_retries": strconv.Atoi: parsing "": invalid syntax`},
	} {
		d := newDecoder(t, DefaultColumns(), defaultRelation...)
		decode(t, d, beginMessage(0x99, 0, 0))
		_, err := d.Decode(test.message)
		var decodeError *Error
		if !errors.As(err, &decodeError) || !strings.HasSuffix(err.Error(), test.want) || decodeError.LSN != pglogrepl.LSN(0x99) {
			t.Errorf("%s:\n got %v\nwant %s", test.name, err, test.want)
		}
	}
	message := insertMessage(testOID, row...)
	d := newDecoder(t, DefaultColumns(), defaultRelation...)
	for n := range message {
		if _, err := d.Decode(message[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are accepted", n, len(message))
		}
	}
}

func TestByteaMustBeHex(t *testing.T) {
	t.Parallel()
	d := newDecoder(t, Columns{ID: "a", AggregateType: "a", AggregateID: "a", Payload: "b"},
		column{"a", pgtype.TextOID}, column{"b", pgtype.ByteaOID})
	for text, want := range map[string]string{
		``:        "bytea_output must be hex",
		`abc`:     "bytea_output must be hex",
		`\000abc`: "bytea_output must be hex",
		`\x0`:     "bytea_output must be hex",
		`\x0g`:    "invalid byte",
	} {
		_, err := d.Decode(insertMessage(testOID, "1", text))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `column "b"`) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}
