package connector

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// notices are the payloads that a connection with LISTEN receives.
type notices struct {
	listener
	payloads []string
}

func (n *notices) WaitForNotification(ctx context.Context) (*pgconn.Notification, error) {
	if len(n.payloads) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	payload := n.payloads[0]
	n.payloads = n.payloads[1:]
	return &pgconn.Notification{Payload: payload}, nil
}

// A person who wants a sink asked now makes its open breaker ask, and its lanes read and try again. Other changes make the lanes read.
func TestNoticesReachLanesAndBreaker(t *testing.T) {
	t.Parallel()
	for payload, want := range map[string]struct {
		asks  uint32
		state breakerState
	}{
		"public:7:retry": {askReread | askRetry, breakerHalfOpen},
		"public:7":       {askReread, breakerOpen},
		"public:8:retry": {0, breakerOpen}, // another sink
		"other:7:retry":  {0, breakerOpen}, // another ledger
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBreakerBench(t, parkNever)
			for _, l := range b.lanes {
				l.sharedSink = &sharedSink{breaker: b.breaker}
			}
			for range 3 {
				b.call(0, "u")
			}
			b.want(breakerOpen)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			c := newConnector(Config{Source: Source{LedgerSchema: "public"}, Logger: slog.New(slog.DiscardHandler)}, nil)
			s := &session{bySink: map[int32][]*lane{7: b.lanes}}
			err := c.awaitChange(ctx, &notices{payloads: []string{payload}}, s)
			if want.asks == 0 && !errors.Is(err, context.DeadlineExceeded) || want.asks != 0 && err != nil {
				t.Errorf("%s: it ended with %v", payload, err)
			}
			b.want(want.state)
			for i, l := range b.lanes {
				if asks := l.asks.Load(); asks != want.asks {
					t.Errorf("%s asks %b of lane %d, want %b", payload, asks, i, want.asks)
				}
			}
		})
	}
}
