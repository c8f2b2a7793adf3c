package service_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pyairtable-compose/outbox-cdc/outboxtest"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

// The numbers are there before the first Start, and go on from one Start to the next.
func TestNumbersOutliveStop(t *testing.T) {
	t.Parallel()
	db := outboxtest.NewDB(t)
	c := configOf(t, db, outboxtest.NewSink())
	registry := prometheus.NewRegistry()
	c.EnableMetrics, c.Registerer = true, registry
	s := newService(t, db, c)
	if p := s.Outbox.GetProcessorStatus(); len(p) != 1 || p[0].Healthy || p[0].Status != "" || p[0].CircuitBreaker != "closed" {
		t.Errorf("before the first Start: %+v", p)
	}
	if stats := s.Outbox.GetStats(); stats != (service.OutboxStats{}) {
		t.Errorf("before the first Start: %+v", stats)
	}
	for n := 1; n <= 3; n++ {
		start(t, s)
		write(t, s, "1", "order.placed")
		await(t, "it is counted", func() bool {
			return s.Outbox.GetStats().Delivered == n && s.WorkerManager.GetWorkerStats()[0].Delivered == n
		})
		want := fmt.Sprintf(`# HELP pyairtable_outbox_sessions_total Replication sessions begun since the process began.
			# TYPE pyairtable_outbox_sessions_total counter
			pyairtable_outbox_sessions_total %d
			`, n)
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "pyairtable_outbox_sessions_total"); err != nil {
			t.Error(err)
		}
		stop(t, s)
		if got := s.Outbox.GetStats().Delivered; got != n {
			t.Errorf("%d are counted after Stop, want %d", got, n)
		}
	}
}
