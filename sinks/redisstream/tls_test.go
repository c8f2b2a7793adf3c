package redisstream

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// TLS to a port without it: the error says so, and not that time has passed.
func TestTLSToPlainPort(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{})
	s := newSink(t, Config{URL: "rediss://" + server.Addr()})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	errs := s.Deliver(ctx, []sinks.Message{{Event: &outbox.Event{ID: "1", AggregateType: "order", AggregateID: "1"}, Topic: "orders"}})
	if len(errs) != 1 || !errors.Is(errs[0], sinks.ErrUnavailable) || !strings.Contains(errs[0].Error(), "does not answer TLS; if this port is without TLS, write redis://") {
		t.Errorf("got %v", errs)
	}
}
