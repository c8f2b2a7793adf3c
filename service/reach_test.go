package service

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// impatient is a sink with a deadline of its own, such as one for the TLS handshake.
type impatient struct{ sinks.Checker }

func (impatient) Check(context.Context, []string) ([]sinks.TopicCheck, error) {
	return nil, fmt.Errorf("TLS: %w", context.DeadlineExceeded)
}

func (impatient) Close() error { return nil }

// TestReachSinkWithADeadlineOfItsOwn: the time of the check has not ended, and the problem does not say so.
func TestReachSinkWithADeadlineOfItsOwn(t *testing.T) {
	t.Parallel()
	s := connector.Sink{Name: "hook", Open: func() (sinks.Sink, error) { return impatient{}, nil }}
	got := reachSink(t.Context(), s, nil, time.Minute)
	if got.Usable || !strings.Contains(got.Problem, "TLS") || strings.Contains(got.Problem, "within") {
		t.Errorf("%+v", got)
	}
}
