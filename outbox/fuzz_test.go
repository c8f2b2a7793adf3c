package outbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// arguments are what the fuzzer varies of an event.
type arguments struct {
	id, aggregateType, aggregateID, eventType string
	version                                   int
	payload, metadata                         []byte
	createdAt                                 int64 // µs since 1970
	retries                                   int   // math.MinInt: nil
	tenantID, correlationID, causationID      string
}

func (a arguments) event() Event {
	e := Event{
		ID: a.id, AggregateType: a.aggregateType, AggregateID: a.aggregateID, EventType: a.eventType, EventVersion: a.version,
		Payload: a.payload, Metadata: a.metadata, TenantID: a.tenantID, CorrelationID: a.correlationID, CausationID: a.causationID,
	}
	if a.createdAt != 0 {
		e.CreatedAt = time.UnixMicro(a.createdAt)
	}
	if a.retries > -2 {
		e.MaxRetries = &a.retries
	}
	return e
}

// FuzzInsert: what validation accepts, the table accepts and gives back. And JSON is what PostgreSQL says it is.
func FuzzInsert(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		a := randomArguments(r)
		f.Add(a.id, a.aggregateType, a.aggregateID, a.eventType, a.version, a.payload, a.metadata, a.createdAt, a.retries,
			a.tenantID, a.correlationID, a.causationID)
	}
	conn := pgtest.New(f).Conn(f)
	f.Fuzz(func(t *testing.T, id, aggregateType, aggregateID, eventType string, version int, payload, metadata []byte,
		createdAt int64, retries int, tenantID, correlationID, causationID string,
	) {
		checkAgainstServer(t, conn, arguments{
			id, aggregateType, aggregateID, eventType, version, payload, metadata, createdAt, retries, tenantID, correlationID, causationID,
		}.event())
	})
}

// TestValidationAgreesWithTable does the same with events that are mostly valid and often odd.
func TestValidationAgreesWithTable(t *testing.T) {
	t.Parallel()
	conn := pgtest.New(t).Conn(t)
	const seed = 7
	r := rand.New(rand.NewPCG(seed, seed))
	accepted := 0
	for range 3000 {
		if checkAgainstServer(t, conn, randomArguments(r).event()) {
			accepted++
		}
	}
	if accepted < 500 || accepted > 2500 {
		t.Errorf("%d of 3000 events were valid: the generator tests little", accepted)
	}
}

// checkAgainstServer reports whether the event was valid.
func checkAgainstServer(t *testing.T, conn *pgx.Conn, e Event) bool {
	t.Helper()
	ctx := context.Background() // a time-out would close the connection that all share
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx) //nolint:errcheck // the next Begin would say so

	checkJSON(t, tx, e.Payload)
	err = Insert(ctx, tx, e)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		t.Fatalf("valid, but refused: %v %s\n%s", err, pgErr.Detail, dump(e))
	}
	if err != nil {
		return false
	}
	got, metadataKept := readBack(t, tx, e.Metadata)
	want := e
	want.ID = strings.ToLower(want.ID)
	if want.ID == "" {
		want.ID = got.ID
	}
	want.EventVersion = max(1, want.EventVersion)
	if want.CreatedAt.IsZero() {
		want.CreatedAt = got.CreatedAt
	}
	if !metadataKept || !equal(got, want) {
		t.Fatalf("got  %s\nwant %s", dump(got), dump(want))
	}
	return true
}

// equal leaves metadata out, which comes back in jsonb's own form.
func equal(a, b Event) bool {
	retries := (a.MaxRetries == nil) == (b.MaxRetries == nil) && (a.MaxRetries == nil || *a.MaxRetries == *b.MaxRetries)
	return retries && a.ID == b.ID && a.AggregateType == b.AggregateType && a.AggregateID == b.AggregateID &&
		a.EventType == b.EventType && a.EventVersion == b.EventVersion && bytes.Equal(a.Payload, b.Payload) &&
		a.CreatedAt.Equal(b.CreatedAt) && a.TenantID == b.TenantID && a.CorrelationID == b.CorrelationID && a.CausationID == b.CausationID
}

func dump(e Event) string {
	return fmt.Sprintf("%+v, payload %q, metadata %q", e, e.Payload, e.Metadata)
}

// readBack reads the only event of the table, empty texts for NULL.
func readBack(t *testing.T, tx pgx.Tx, metadata []byte) (e Event, metadataKept bool) {
	t.Helper()
	if len(metadata) == 0 {
		metadata = []byte("{}")
	}
	err := tx.QueryRow(context.Background(), `select id::text, aggregate_type, aggregate_id, event_type, event_version, payload::text, created_at,
		max_retries, coalesce(tenant_id, ''), coalesce(correlation_id, ''), coalesce(causation_id, ''), metadata = $1::text::jsonb
		from event_outbox where not exists (select where '' in (tenant_id, correlation_id, causation_id))`, string(metadata)).
		Scan(&e.ID, &e.AggregateType, &e.AggregateID, &e.EventType, &e.EventVersion, &e.Payload, &e.CreatedAt, &e.MaxRetries,
			&e.TenantID, &e.CorrelationID, &e.CausationID, &metadataKept)
	if err != nil {
		t.Fatal(err)
	}
	return e, metadataKept
}

// checkJSON: PostgreSQL accepts a payload if and only if we do.
func checkJSON(t *testing.T, tx pgx.Tx, payload []byte) {
	t.Helper()
	ctx := context.Background()
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, theirs := savepoint.Exec(ctx, "select $1::json", string(payload))
	if err := savepoint.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	var ours check
	ours.payload(payload)
	if theirs == nil && ours.mistakes != nil && deeper(payload, 10000) {
		return
	}
	if (theirs == nil) != (ours.mistakes == nil) {
		t.Fatalf("%.200q: we say %v, PostgreSQL says %v", payload, ours.mistakes, theirs)
	}
}

// deeper reports whether a JSON text is nested more than so many levels deep.
func deeper(b []byte, levels int) bool {
	depth := 0
	for d := json.NewDecoder(bytes.NewReader(b)); depth <= levels; {
		token, err := d.Token()
		if err != nil {
			return false
		}
		switch token {
		case json.Delim('['), json.Delim('{'):
			depth++
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
	}
	return true
}

// pick is one of several, the first mostly.
func pick[T any](r *rand.Rand, usual func() T, odd ...T) T {
	if r.IntN(20) > 0 {
		return usual()
	}
	return odd[r.IntN(len(odd))]
}

func randomArguments(r *rand.Rand) arguments {
	t := func() string { return randomText(r) }
	required := func() string { return "x" + randomText(r) }
	a := arguments{
		id:            pick(r, NewID, "", strings.ToUpper(NewID()), "x", "00000000-0000-0000-0000-000000000000"),
		aggregateType: pick(r, required, "", strings.Repeat("\U0010FFFF", 256), "\x00", "\xc3"),
		aggregateID:   pick(r, required, "", noise(r, 1024), noise(r, 1025)),
		eventType:     pick(r, required, "", noise(r, 1024)),
		version:       pick(r, func() int { return r.IntN(3) }, -1, 1<<31-1, 1<<31),
		payload:       []byte(pick(r, func() string { return randomJSON(r, 4) }, "", "nul", "{}x", "[1,]", "01", "1.", "+1", ".5", "'a'", "\"\n\"", "\"\x00\"", "\v1", "\u00a01")),
		createdAt:     pick(r, func() int64 { return r.Int64N(253402300800_000000) }, 0, -62135596800_000000, 253402300799_999999, 253402300800_000000, -1),
		retries:       pick(r, func() int { return -2 }, -1, 0, 1<<31-1, 1<<31),
		tenantID:      pick(r, t, "", noise(r, 1024), "\x00"),
		correlationID: pick(r, t, ""),
		causationID:   pick(r, t, ""),
	}
	if r.IntN(2) == 0 {
		a.metadata = []byte(pick(r, func() string { return ` {"x" :` + randomJSON(r, 3) + "}" }, "[]", "null", "{", " "))
	}
	return a
}

var fragments = []string{
	"a", "Ü", "日本", "🙂", `"`, `\`, "'", "{", "}", ",", "NULL", "null", " ", "\n", "\t", "\r", "\x01", "\x7f", "$1", "%s", "--", "\u200b", "\ufffd", "\U0010FFFF", ";",
}

func randomText(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(5) {
		b.WriteString(fragments[r.IntN(len(fragments))])
	}
	return b.String()
}

// noise does not compress, as that would get a long text into an index.
func noise(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('0' + r.IntN(75))
	}
	return string(b)
}

// randomJSON makes JSON with everything that texts can be made of, and now and then with something that json or jsonb
// refuses.
func randomJSON(r *rand.Rand, depth int) string {
	space := func() string { return strings.Repeat([]string{" ", "\n", "\t", "\r"}[r.IntN(4)], max(0, r.IntN(5)-3)) }
	key := func() string {
		parts := []string{"a", "b", "ü", "🙂", `\"`, `\\`, `\/`, `\b`, `\u00e9`, `\ud83d\ude42`, "\x7f", "'", "{"}
		if r.IntN(30) == 0 {
			parts = []string{`\u0000`, `\ud83d`, `\ude42`, `\ud83d\ud83d`, "\xff", "\x1f", `\x`, `\u12`, "\xed\xa0\x80"}
		}
		var b strings.Builder
		for range r.IntN(3) {
			b.WriteString(parts[r.IntN(len(parts))])
		}
		return `"` + b.String() + `"`
	}
	var b strings.Builder
	b.WriteString(space())
	switch kind := r.IntN(6); {
	case depth > 0 && kind < 2:
		b.WriteByte('{')
		for i := range r.IntN(4) {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(space() + key() + space() + ":" + randomJSON(r, depth-1))
		}
		b.WriteString(space() + "}")
	case depth > 0 && kind == 2:
		b.WriteByte('[')
		for i := range r.IntN(4) {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(randomJSON(r, depth-1))
		}
		b.WriteString(space() + "]")
	case kind == 3:
		b.WriteString(key())
	default:
		scalars := []string{"true", "false", "null", "0", "-0", "-1.50", "1E+2", "9007199254740993", "0.1000000000000000000000001", "1e400", "1e-9999"}
		if r.IntN(20) == 0 {
			scalars = []string{"1e131072", "1e-16384", "-", "1e", "01", "True", "NaN", strings.Repeat("9", 1001)}
		}
		b.WriteString(scalars[r.IntN(len(scalars))])
	}
	b.WriteString(space())
	return b.String()
}
