// Orders is a small service that shows outbox-cdc at work: an HTTP request becomes a row of its own table and an event, in one
// transaction, and the event goes to Kafka.
//
//	export DATABASE_URL=postgres://… OUTBOX_KAFKA_BROKERS=localhost:9092
//	go run ./examples/orders
//	curl -d '{"customer": "ada", "amount": 12.5}' localhost:8081/orders
//
// The connector runs inside the service; orders.go knows nothing of it.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	outbox "github.com/pyairtable-compose/outbox-cdc/service"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(ctx, logger); err != nil {
		logger.Error("orders has ended", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, logger *slog.Logger) error {
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer db.Close()
	connector, err := outbox.Setup(db, outbox.Preset{Service: "orders", Sinks: []string{"kafka"}})
	if err != nil {
		return err
	}
	if err := connector.Start(); err != nil {
		return err
	}
	defer func() {
		if err := connector.Stop(); err != nil {
			logger.Error("the connector has ended", "err", err)
		}
	}()

	store := newStore(db, logger)
	if err := store.migrate(ctx); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", store.place)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		// While Kafka is away the connector is degraded, and ready: orders can be placed, and their events wait. The details of the
		// status are for the log and for metrics, because whoever reaches this page may be a stranger.
		status := connector.GetStatus()
		if !status.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, status.Status)
	})
	address := os.Getenv("ORDERS_LISTEN")
	if address == "" {
		address = "127.0.0.1:8081"
	}
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.ListenAndServe() }()
	logger.Info("orders listens", "address", address)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Requests end first, then the connector, which delivers their events.
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return server.Shutdown(late)
}
