package outboxtest_test

import (
	"database/sql"
	"os"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/outboxtest"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func TestMain(m *testing.M) { os.Exit(outboxtest.Main(m)) }

// The helpers that the platform's page of tests names are one line each.
func setupTestDB(t *testing.T) *sql.DB { return outboxtest.NewDB(t) }

func setupTestOutbox(t *testing.T, db *sql.DB) *outboxtest.Outbox {
	return outboxtest.NewOutbox(t, db)
}

func getOutboxEvents(t *testing.T, db *sql.DB, aggregateID string) []outbox.Event {
	return outboxtest.Events(t, db, aggregateID)
}

func TestUserRegistrationWithOutbox(t *testing.T) {
	t.Parallel()
	db := setupTestDB(t)
	outboxService := setupTestOutbox(t, db)
	register := func(id string, types ...string) {
		var events []outbox.Event
		for _, typ := range types {
			events = append(events, outbox.Event{
				AggregateType: "user", AggregateID: id, EventType: typ, Payload: []byte(`{"email": "test@example.com"}`),
				Metadata: []byte(`{"by": "test"}`), TenantID: "tenant-1",
			})
		}
		err := outboxService.Wrapper.ExecuteWithOutbox(t.Context(), service.EventProducingOperation{Events: outbox.DomainEvents(events...)})
		if err != nil {
			t.Fatal(err)
		}
	}
	register("1", "user.registered", "user.welcomed")
	register("2", "user.registered")
	events := getOutboxEvents(t, db, "1")
	if len(events) != 2 || events[0].EventType != "user.registered" || events[0].TenantID != "tenant-1" ||
		string(events[0].Payload) != `{"email": "test@example.com"}` || string(events[0].Metadata) != `{"by": "test"}` || events[0].CreatedAt.IsZero() {
		t.Errorf("%+v", events)
	}
	outboxtest.AssertWritten(t, db, "1", "user.registered", "user.welcomed")
	outboxtest.AssertWritten(t, db, "3")
	outboxService.AssertPublished(t, "1", "user.registered", "user.welcomed")
	outboxService.AssertPublished(t, "2", "user.registered")
	outboxService.AssertPublished(t, "3")
	entry := outboxService.Published()[0]
	if entry.ID != events[0].ID || entry.Metadata["by"] != "test" {
		t.Errorf("published %+v", entry)
	}
}

// recorded is a test whose failures are looked at.
type recorded struct {
	testing.TB
	failure string
}

func (r *recorded) Errorf(string, ...any) { r.failure = "yes" }

func TestAssertionsFail(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDB(t)
	sink := outboxtest.NewSink()
	for _, id := range []string{"a", "b", "a"} { // the third is a duplicate
		if err := sink.Publish(t.Context(), &outbox.OutboxEntry{ID: id, AggregateID: "1", EventType: strings.ToUpper(id)}); err != nil {
			t.Fatal(err)
		}
	}
	for name, assert := range map[string]func(testing.TB){
		"too many":    func(t testing.TB) { sink.AssertPublished(t, "1", "A") },
		"none wanted": func(t testing.TB) { sink.AssertPublished(t, "1") },
		"other order": func(t testing.TB) { sink.AssertPublished(t, "1", "B", "A") },
		"not written": func(t testing.TB) { outboxtest.AssertWritten(t, db, "1", "A") },
	} {
		r := &recorded{TB: t}
		if assert(r); r.failure == "" {
			t.Errorf("%s: passes", name)
		}
	}
	sink.AssertPublished(t, "1", "A", "B")
}
