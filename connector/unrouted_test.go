package connector

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// Ten unrouted events a second for two and a half minutes, and one an hour later: the log names the first at once, then counts once a minute.
func TestUnroutedLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		var u unroutedLog
		start := time.Now()
		var got []string
		told := func() {
			u.report(time.Now(), logger)
			if line := log.String(); line != "" {
				fields := regexp.MustCompile(`events=\d+ aggregate_type=\w+ event_type=\S+`).FindString(line)
				got = append(got, time.Since(start).String()+" "+fields)
				log.Reset()
			}
		}
		for i := range 150 {
			for range 10 {
				u.add(&outbox.Event{AggregateType: "order", EventType: "order." + string(rune('a'+i/60))})
			}
			told()
			time.Sleep(time.Second)
		}
		for range 60 {
			told()
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		u.add(&outbox.Event{AggregateType: "payment", EventType: "paid"})
		told()
		want := []string{
			"0s events=10 aggregate_type=order event_type=order.a", "1m0s events=600 aggregate_type=order event_type=order.a",
			"2m0s events=600 aggregate_type=order event_type=order.b", "3m0s events=290 aggregate_type=order event_type=order.c",
			"1h3m30s events=1 aggregate_type=payment event_type=paid",
		}
		check(t, "reports", strings.Join(got, "\n"), strings.Join(want, "\n"))
	})
}

// The keeper tells the log while a session runs.
func TestKeeperTellsOfUnroutedEvents(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	var log bytes.Buffer
	_, err := b.keepFor(10*time.Second, func(c *Connector) {
		c.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.unroutedLog.add(&outbox.Event{AggregateType: "order", EventType: "order.placed"})
	})
	if err != nil {
		t.Error(err)
	}
	if got := log.String(); strings.Count(got, "events=1 aggregate_type=order event_type=order.placed") != 1 {
		t.Errorf("the log says %s", got)
	}
}
