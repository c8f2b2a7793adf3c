package connector

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// What a destination has answered is stored with the message, and stands nowhere else: not in the log, nor in what /readyz says.
func TestAnswerIsStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, func(_ context.Context, _ int, batch []sinks.Message) []error {
			return []error{sinks.WithAnswer("canary", fmt.Errorf("%w: status 400", sinks.ErrPermanent))}
		})
		var log bytes.Buffer
		b.logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		b.run()
		b.arrive("a1")
		synctest.Wait()
		if len(b.rows) != 1 || b.rows[0].Error != "permanently refused: status 400; it answered: canary" {
			t.Errorf("stored %+v", b.rows)
		}
		if said := log.String() + fmt.Sprint(b.state.cause); !strings.Contains(said, "status 400") || strings.Contains(said, "canary") {
			t.Errorf("said %s", said)
		}
		b.stop()
	})
}
