package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// What the ledger has of a sink is never older than a second, and is written only if it has changed.
func TestPublisher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		wake := make(chan struct{}, 1)
		s := newSinkState(observedSink{name: "s", health: &monitoring.Health{}, logger: slog.New(slog.DiscardHandler), wake: bells{wake}})
		s.begin(1)
		began := time.Now()
		var mu sync.Mutex // of what the publisher's goroutine uses
		var wrote []string
		var fails error
		var told []error
		failing := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			fails = err
		}
		p := &publisher{
			epoch: 7, sinks: map[int32]*sinkState{3: s}, wake: wake, written: map[int32]publishedState{},
			tell: func(err error) {
				mu.Lock()
				defer mu.Unlock()
				if (err != nil) != (len(told)%2 == 1) { // a change
					told = append(told, err)
				}
			},
			write: func(_ context.Context, processor int32, st ledger.SinkState) error {
				mu.Lock()
				defer mu.Unlock()
				if fails == nil {
					after := func(t time.Time) string {
						if t.IsZero() {
							return "-"
						}
						return t.Sub(began).String()
					}
					wrote = append(wrote, fmt.Sprintf("%d@%d %s since %s asks %s rate %d: %s", processor, st.Epoch, st.Condition, after(st.Since), after(st.AsksAt), st.Rate, st.Cause))
				}
				return fails
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { p.run(ctx); close(done) }()
		take := func() []string {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			lines := wrote
			wrote = nil
			return lines
		}
		want := func(what string, lines ...string) {
			t.Helper()
			if got := strings.Join(take(), "\n"); got != strings.Join(lines, "\n") {
				t.Errorf("%s: wrote\n%s\nwant\n%s", what, got, strings.Join(lines, "\n"))
			}
		}
		time.Sleep(time.Hour)
		want("well")
		began = time.Now()
		s.answered(answer{counts: monitoring.Counts{Failed: 1}, cause: errAway})
		cause := errAway.Error()
		want("failing", "3@7 failing since 0s asks - rate 0: "+cause)
		s.breakerIs(breakerOpen, time.Now().Add(10*time.Second))
		time.Sleep(publishEvery)
		want("away", "3@7 away since 0s asks 10s rate 0: "+cause)
		time.Sleep(9 * time.Second)
		want("away still")
		s.breakerIs(breakerHalfOpen, time.Time{})
		s.breakerIs(breakerOpen, time.Now().Add(10*time.Second))
		want("a failed probe, of which the middle is not told", "3@7 away since 0s asks 20s rate 0: "+cause)
		failing(errors.New("no answer"))
		s.breakerIs(breakerClosed, time.Time{})
		s.suspectIs(true)
		time.Sleep(5 * time.Second)
		want("cannot be written")
		failing(nil)
		time.Sleep(publishEvery)
		want("can be written", "3@7 suspect since 10s asks - rate 40: "+cause)
		if len(told) != 2 || told[0] == nil || told[1] != nil {
			t.Errorf("told %v", told)
		}
		for i := range 100 {
			s.answered(answer{counts: monitoring.Counts{Failed: 1}, cause: fmt.Errorf("400 %d", i)})
			time.Sleep(100 * time.Millisecond)
		}
		if lines := take(); len(lines) > 2 {
			t.Errorf("each failure is written:\n%s", strings.Join(lines, "\n"))
		}
		s.isPaused(ledger.Paused)
		time.Sleep(publishEvery)
		if lines := take(); len(lines) != 1 || !strings.Contains(lines[0], "paused since") {
			t.Errorf("paused: %q", lines)
		}
		s.suspectIs(false)
		s.isPaused(ledger.Active)
		time.Sleep(publishEvery)
		want("well again", "3@7 ok since - asks - rate 0: ")
		for i := range 100 { // 10 s of flapping
			s.suspectIs(i%2 == 0)
			time.Sleep(100 * time.Millisecond)
		}
		if lines := take(); len(lines) > 11 {
			t.Errorf("%d times in 10 s", len(lines))
		}
		cancel()
		<-done
	})
}
