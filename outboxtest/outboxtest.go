// Package outboxtest is for the tests of services that write events: a migrated PostgreSQL, a connector whose sink is in
// memory, and assertions on the events that were written and published.
//
//	func TestRegister(t *testing.T) {
//		db := outboxtest.NewDB(t)
//		published := outboxtest.NewOutbox(t, db)
//		user := register(t, db, "test@example.com")
//		outboxtest.AssertWritten(t, db, user.ID, "user.registered")
//		published.AssertPublished(t, user.ID, "user.registered")
//	}
//
// The server is the one that TEST_DATABASE_URL names, as a superuser and with wal_level=logical; else one of the
// package's own, from the PostgreSQL that is installed or else downloaded, which all tests of a binary share. Where none can
// be had, tests fail and say what to install or set.
package outboxtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

// Main runs the tests of a package and then stops the server:
//
//	func TestMain(m *testing.M) { os.Exit(outboxtest.Main(m)) }
//
// Without it the server ends with the test binary all the same, but its data stays until a server is started again.
func Main(m *testing.M) int { return pgtest.Main(m) }

// NewDB makes a database that has the outbox and its ledger. When the test ends it is closed and dropped, with its replication
// slots.
func NewDB(t testing.TB) *sql.DB {
	t.Helper()
	dsn := pgtest.New(t).DSN
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(opener{stdlib.GetConnector(*config), dsn})
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// DSN is that of a database that NewDB made.
func DSN(t testing.TB, db *sql.DB) string {
	t.Helper()
	d, ok := db.Driver().(namedDriver)
	if !ok {
		t.Fatal("this *sql.DB is not from outboxtest.NewDB, and tells no DSN")
	}
	return d.dsn
}

// opener carries the DSN to where a *sql.DB can be asked for it.
type opener struct {
	driver.Connector
	dsn string
}

func (o opener) Driver() driver.Driver { return namedDriver{o.Connector.Driver(), o.dsn} }

type namedDriver struct {
	driver.Driver
	dsn string
}

// Outbox is a connector that runs, and the sink that it delivers to.
type Outbox struct {
	*service.OutboxService
	*Sink
}

// NewOutbox starts a connector on a database that NewDB made. It is stopped when the test ends.
func NewOutbox(t testing.TB, db *sql.DB) *Outbox {
	t.Helper()
	sink := NewSink()
	s, err := service.NewOutboxService(db, service.OutboxServiceConfig{
		ServiceName: "test", DatabaseURL: DSN(t, db), Slot: "test_" + strings.ToLower(rand.Text()), WorkerCount: 1,
		Publishers: []service.Publisher{sink}, CircuitBreakerEnabled: true,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return &Outbox{s, sink}
}

// Events are the committed events of an aggregate, in the order in which they were created.
func Events(t testing.TB, db *sql.DB, aggregateID string) (events []outbox.Event) {
	t.Helper()
	rows, err := db.QueryContext(context.Background(), `select id, aggregate_type, aggregate_id, event_type, event_version, payload, metadata, created_at,
		coalesce(tenant_id, ''), coalesce(correlation_id, ''), coalesce(causation_id, '')
		from event_outbox where aggregate_id = $1 order by created_at, id`, aggregateID)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var e outbox.Event
		err := rows.Scan(&e.ID, &e.AggregateType, &e.AggregateID, &e.EventType, &e.EventVersion, &e.Payload, &e.Metadata, &e.CreatedAt,
			&e.TenantID, &e.CorrelationID, &e.CausationID)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return events
}

// AssertWritten fails unless the committed events of an aggregate are of these types, in this order.
func AssertWritten(t testing.TB, db *sql.DB, aggregateID string, types ...string) {
	t.Helper()
	got := []string{}
	for _, e := range Events(t, db, aggregateID) {
		got = append(got, e.EventType)
	}
	if !slices.Equal(got, types) {
		t.Errorf("events written of %q (-want +got):\n%s", aggregateID, cmp.Diff(append([]string{}, types...), got))
	}
}
