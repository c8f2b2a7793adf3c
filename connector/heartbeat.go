package connector

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// heartbeats is the duty that writes the connector's sign of life, and with it the numbers of each sink that have changed since they were
// last written. So an outbox that is idle has no more writes than the sign of life.
type heartbeats struct {
	status  func() monitoring.Status
	write   func(ctx context.Context, beats []ledger.Heartbeat) error
	written map[string]ledger.Heartbeat // by the name of the sink; of this session
}

// beat writes once.
func (h *heartbeats) beat(ctx context.Context) error {
	st := h.status()
	var beats []ledger.Heartbeat
	now := map[string]ledger.Heartbeat{}
	for i := range st.Sinks {
		sink := &st.Sinks[i]
		metrics, err := json.Marshal(monitoring.NewProcessorMetrics(&st, sink))
		if err != nil {
			return fmt.Errorf("encode the numbers of sink %q: %w", sink.Name, err)
		}
		beat := ledger.Heartbeat{Name: sink.Name, Metrics: metrics, ProcessedAt: sink.Events.DeliveredAt}
		now[sink.Name] = beat
		was := h.written[sink.Name]
		if bytes.Equal(was.Metrics, beat.Metrics) {
			beat.Metrics = nil
		}
		if was.ProcessedAt.Equal(beat.ProcessedAt) {
			beat.ProcessedAt = time.Time{}
		}
		beats = append(beats, beat)
	}
	err := h.write(ctx, beats)
	if err == nil {
		h.written = now
	}
	return err
}
