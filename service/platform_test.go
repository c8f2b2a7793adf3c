package service_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	shared "github.com/pyairtable-compose/outbox-cdc/outbox" // has the platform's shared.DomainEvent
	"github.com/pyairtable-compose/outbox-cdc/outboxtest"
	outbox "github.com/pyairtable-compose/outbox-cdc/service" // as a service of the platform imports it
)

// user is an aggregate of the platform.
type user struct {
	id     string
	events []shared.DomainEvent
}

func (u *user) GetUncommittedEvents() []shared.DomainEvent { return u.events }
func (u *user) MarkEventsAsCommitted()                     { u.events = nil }

func event(aggregateID, typ string) shared.DomainEvent {
	return shared.DomainEvents(shared.Event{ID: outbox.NewID(), AggregateType: "user", AggregateID: aggregateID, EventType: typ, Payload: []byte("{}")})[0]
}

// YourUserRepository is a repository that takes part in the transaction of the outbox.
type YourUserRepository struct{}

func (YourUserRepository) Save(ctx context.Context, u *user) error {
	tx, ok := outbox.TxFromContext(ctx)
	if !ok {
		return errors.New("no transaction")
	}
	return insertUser(tx, u.id)
}

func insertUser(tx *sql.Tx, id string) error {
	_, err := tx.Exec("insert into users (id) values ($1)", id)
	return err
}

// broker is a Kafka with one topic, and the types of the events that it has, by aggregate.
type broker struct {
	address string
	client  *kgo.Client
	got     map[string][]string
}

func newBroker(t *testing.T, topic string) *broker {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	b := &broker{address: cluster.ListenAddrs()[0], got: map[string][]string{}}
	if b.client, err = kgo.NewClient(kgo.SeedBrokers(b.address), kgo.ConsumeTopics(topic)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.client.Close)
	return b
}

// expect reads until the aggregate has this many events, and compares their types.
func (b *broker) expect(t *testing.T, aggregateID string, types ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(b.got[aggregateID]) < len(types) && ctx.Err() == nil {
		b.client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			for _, h := range r.Headers {
				if h.Key == "eventType" {
					b.got[string(r.Key)] = append(b.got[string(r.Key)], string(h.Value))
				}
			}
		})
	}
	if !slices.Equal(b.got[aggregateID], types) {
		t.Errorf("Kafka has %q of %s, not %q", b.got[aggregateID], aggregateID, types)
	}
}

// The snippets of the platform's page work, in the order of the page. Only the import differs. The test sets the
// environment.
func TestPlatformPage(t *testing.T) {
	db := outboxtest.NewDB(t)
	kafka := newBroker(t, "pyairtable-events")
	if _, err := db.Exec("create table users (id text primary key)"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DATABASE_URL", outboxtest.DSN(t, db))
	t.Setenv("OUTBOX_SLOT", slot())
	t.Setenv("OUTBOX_KAFKA_BROKERS", kafka.address)
	t.Setenv("OUTBOX_RETENTION_DAYS", "7")
	ctx := t.Context()

	// Service integration
	outboxService, err := outbox.SetupForUserService(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := outboxService.Start(); err != nil {
		t.Fatal(err)
	}
	defer outboxService.Stop() //nolint:errcheck // stopped below

	// Repository integration
	baseRepo := &YourUserRepository{}
	outboxEnabledRepo := outbox.NewOutboxEnabledAggregateRepository(
		baseRepo,
		outboxService.Wrapper,
	)
	userAggregate := &user{id: "1", events: []shared.DomainEvent{event("1", "user.registered")}}
	if err := outboxEnabledRepo.Save(ctx, userAggregate); err != nil || userAggregate.events != nil {
		t.Fatal(err, userAggregate.events)
	}

	// Manual event publishing
	operation := outbox.EventProducingOperation{
		Operation: func(tx *sql.Tx) error {
			return insertUser(tx, "2")
		},
		Events: []shared.DomainEvent{
			event("2", "user.registered"),
			event("2", "email.welcome"),
		},
	}
	if err := outboxService.Wrapper.ExecuteWithOutbox(ctx, operation); err != nil {
		t.Fatal(err)
	}

	// Batch operations
	wrapper := outboxService.Wrapper
	operations := []outbox.EventProducingOperation{
		{
			Operation: func(tx *sql.Tx) error { return insertUser(tx, "3") },
			Events:    []shared.DomainEvent{event("3", "user.created")},
		},
		{
			Operation: func(tx *sql.Tx) error { return insertUser(tx, "4") },
			Events:    []shared.DomainEvent{event("4", "user.created")},
		},
	}
	batchOp := outbox.CombineOperations(operations...)
	if err := wrapper.ExecuteBatch(ctx, batchOp); err != nil {
		t.Fatal(err)
	}

	// SAGA integration
	sagaManager := outbox.NewOutboxSagaManager(wrapper)
	compensationEvents := []shared.DomainEvent{event("5", "payment.reversed")}
	resultEvents := []shared.DomainEvent{event("5", "payment.executed")}
	err = sagaManager.ExecuteSagaStep(
		ctx,
		"saga-1",
		func(tx *sql.Tx) error {
			return insertUser(tx, "5")
		},
		compensationEvents,
		resultEvents,
	)
	if err != nil {
		t.Fatal(err)
	}

	kafka.expect(t, "1", "user.registered")
	kafka.expect(t, "2", "user.registered", "email.welcome")
	kafka.expect(t, "3", "user.created")
	kafka.expect(t, "4", "user.created")
	kafka.expect(t, "5", "payment.executed")

	// Health checks and debug commands
	await(t, "all is counted", func() bool { return outboxService.Outbox.GetStats().Delivered == 6 })
	status := outboxService.GetStatus()
	healthStatus := outboxService.Outbox.GetProcessorStatus()
	workers := outboxService.WorkerManager.GetWorkerStats()
	stats := outboxService.Outbox.GetStats()
	if !status.Running || !status.Ready || status.ServiceName != "user-service" || len(healthStatus) != 1 || healthStatus[0].Name != "kafka" ||
		len(workers) != 1 || workers[0].Delivered != 6 || workers[0].Workers != 2 || stats.Parked != 0 {
		t.Errorf("%+v\n%+v\n%+v\n%+v", status, healthStatus, workers, stats)
	}
	text, err := json.Marshal(status)
	if err != nil || !strings.Contains(string(text), `"service_name":"user-service"`) || !strings.Contains(string(text), `"role":"leader"`) {
		t.Errorf("as JSON: %s, %v", text, err)
	}

	// Metrics, while it runs
	delivered := func() bool {
		families, err := prometheus.DefaultGatherer.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "pyairtable_outbox_events_processed_total" {
				return true
			}
		}
		return false
	}
	if !delivered() {
		t.Error("the metrics are not where Prometheus looks")
	}
	if n, err := testutil.GatherAndCount(prometheus.DefaultGatherer, "pyairtable_outbox_build_info"); err != nil || n != 1 {
		t.Errorf("%d series of build_info, %v", n, err)
	}
	other, err := outbox.SetupForUserService(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err == nil || !strings.Contains(err.Error(), "Registerer of its own") {
		t.Errorf("a second connector of the process: %v", err)
	}
	if err := outboxService.Stop(); err != nil {
		t.Error(err)
	}
	if delivered() {
		t.Error("the metrics are still there")
	}
}

// CustomPublisher is the example of the page.
type CustomPublisher struct {
	mu  sync.Mutex
	got []string
}

func (p *CustomPublisher) Publish(ctx context.Context, entry *outbox.OutboxEntry) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, entry.EventType)
	return nil
}

func (p *CustomPublisher) GetName() string {
	return "custom_publisher"
}

// The page's configuration objects work, each with a custom publisher beside it.
func TestPlatformConfiguration(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDB(t)
	kafka := newBroker(t, "pyairtable-events")
	var hooks atomicList
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hooks.add(r.Header.Get("Authorization")) }))
	t.Cleanup(server.Close)

	custom := &CustomPublisher{}
	config := outbox.OutboxServiceConfig{
		ServiceName:   "user-service",
		DatabaseURL:   outboxtest.DSN(t, db),
		PublisherType: "kafka",
		BatchSize:     50,
		WorkerCount:   2,
		EnableMetrics: true,
		RetentionDays: 7,

		Slot: slot(), Publishers: []outbox.Publisher{custom}, Registerer: prometheus.NewRegistry(),
	}
	config.CircuitBreakerEnabled = true
	config.CircuitBreakerMaxFailures = 5
	config.CircuitBreakerResetTimeout = 60 * time.Second

	run := func(typ string) {
		t.Helper()
		s := newService(t, db, config)
		start(t, s)
		write(t, s, "1", typ)
		await(t, typ, func() bool { return s.Outbox.GetStats().Delivered == len(s.Outbox.GetProcessorStatus()) })
		stop(t, s)
	}

	config.PublisherConfig = map[string]any{
		"brokers": []string{kafka.address},
		"topic":   "pyairtable-events",
	}
	run("by.kafka")
	kafka.expect(t, "1", "by.kafka")

	config.PublisherType = "composite"
	config.PublisherConfig = map[string]any{
		"strategy": "primary", // all, any, primary
		"kafka": map[string]any{
			"brokers": []string{kafka.address},
			"topic":   "pyairtable-events",
		},
	}
	run("by.composite")
	kafka.expect(t, "1", "by.kafka", "by.composite")

	config.PublisherType = "webhook"
	config.PublisherConfig = map[string]any{
		"url": server.URL,
		"headers": map[string]string{
			"Authorization": "Bearer token",
		},
		"allow_hosts": []string{"127.0.0.1"}, // as it is internal
	}
	run("by.webhook")
	if got := hooks.all(); !slices.Equal(got, []string{"Bearer token"}) {
		t.Errorf("the webhook got %q", got)
	}

	if !slices.Equal(custom.got, []string{"by.kafka", "by.composite", "by.webhook"}) {
		t.Errorf("the custom publisher got %q", custom.got)
	}
}

// atomicList is a list to which several goroutines may append.
type atomicList struct {
	mu   sync.Mutex
	list []string
}

func (l *atomicList) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, s)
}

func (l *atomicList) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}
