package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outboxtest"
)

func TestMain(m *testing.M) { os.Exit(outboxtest.Main(m)) }

// An order that is placed is in the table and in Kafka; one that is refused is in neither.
func TestOrders(t *testing.T) {
	const topic = "outbox.event.order"
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	db := outboxtest.NewDB(t)
	port, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	t.Setenv("DATABASE_URL", outboxtest.DSN(t, db))
	t.Setenv("OUTBOX_KAFKA_BROKERS", cluster.ListenAddrs()[0])
	t.Setenv("ORDERS_LISTEN", address)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- run(ctx, slog.New(slog.DiscardHandler)) }()

	post := func(body string) (int, string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/orders", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		for {
			response, err := http.DefaultClient.Do(request.Clone(t.Context()))
			if err != nil { // it does not listen yet
				select {
				case err := <-ended:
					t.Fatal(err)
				case <-time.After(50 * time.Millisecond):
				}
				request.Body = io.NopCloser(strings.NewReader(body))
				continue
			}
			defer response.Body.Close()
			answer, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			return response.StatusCode, string(answer)
		}
	}
	if status, _ := post(`{"customer": "ada"}`); status != http.StatusBadRequest {
		t.Errorf("an order of nothing: status %d", status)
	}
	status, answer := post(`{"customer": "ada", "amount": 12.5}`)
	var placed order
	if err := json.Unmarshal([]byte(answer), &placed); err != nil || status != http.StatusCreated {
		t.Fatalf("status %d, %q", status, answer)
	}

	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	late, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	fetches := client.PollFetches(late)
	if err := fetches.Err(); err != nil {
		t.Fatal(err)
	}
	records := fetches.Records()
	if len(records) != 1 || string(records[0].Key) != placed.ID || !strings.Contains(string(records[0].Value), `"customer":"ada"`) {
		t.Errorf("Kafka has %v", records)
	}
	traced := false
	for _, h := range records[0].Headers {
		traced = traced || h.Key == "traceparent" && strings.HasPrefix(string(h.Value), "00-0af7651916cd43dd8448eb211c80319c-")
	}
	if !traced {
		t.Errorf("the request's trace is not in the headers %v", records[0].Headers)
	}
	outboxtest.AssertWritten(t, db, placed.ID, "order.placed")

	// The service is stopped while a request is under way: that ends first, and its event is delivered.
	lock, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback() //nolint:errcheck // after Commit it does nothing
	if _, err := lock.ExecContext(t.Context(), "lock table orders"); err != nil {
		t.Fatal(err)
	}
	answered := make(chan int, 1)
	go func() {
		status, _ := post(`{"customer": "ben", "amount": 1}`)
		answered <- status
	}()
	eventually(t, func() bool {
		var waits bool
		err := db.QueryRowContext(t.Context(), "select exists (select from pg_locks where relation = 'orders'::regclass and not granted)").Scan(&waits)
		return err == nil && waits
	})
	stop()
	eventually(t, func() bool { // it listens no more
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if err := lock.Commit(); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != http.StatusCreated {
		t.Errorf("the request that was under way: status %d", status)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if records := client.PollFetches(late).Records(); len(records) != 1 {
		t.Errorf("Kafka has %v of it", records)
	}
}

// While Kafka is away orders are placed, and the service stays in rotation.
func TestKafkaIsAway(t *testing.T) {
	db := outboxtest.NewDB(t)
	port, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	t.Setenv("DATABASE_URL", outboxtest.DSN(t, db))
	t.Setenv("OUTBOX_KAFKA_BROKERS", "127.0.0.1:1")
	t.Setenv("ORDERS_LISTEN", address)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- run(ctx, slog.New(slog.DiscardHandler)) }()
	do := func(method, path, body string) (int, string) {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, ""
		}
		defer response.Body.Close()
		answer, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, strings.TrimSpace(string(answer))
	}
	place := func() bool {
		status, _ := do(http.MethodPost, "/orders", `{"customer": "ada", "amount": 12.5}`)
		return status == http.StatusCreated
	}
	eventually(t, place) // the service has to start first
	eventually(t, func() bool {
		_, answer := do(http.MethodGet, "/readyz", "")
		return answer == "degraded"
	})
	if status, _ := do(http.MethodGet, "/readyz", ""); status != http.StatusOK || !place() {
		t.Errorf("status %d while Kafka is away, or no order was placed", status)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatal("not within 20 s")
		}
	}
}
