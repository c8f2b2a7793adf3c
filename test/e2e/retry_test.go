package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A receiver is back after an outage, and a person does not want to wait for the breaker's time, nor for the next attempts of what
// is parked.
func TestRetryNow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}, delivery: map[string]any{"retry": map[string]any{"initial": "5m", "max": "10m"}}})
	w.breaker = map[string]any{"max_failures": 2, "reset_timeout": "5m"}
	c := w.connector()
	retry := func(args ...string) string {
		t.Helper()
		out, code := c.command(nil, append(append([]string{"retry"}, args...), "--config", c.config)...)
		if code != 0 {
			t.Errorf("retry %s: exit code %d\n%s", args, code, out)
		}
		return out
	}
	c.start()
	c.ready("leader")
	w.hook.status.Store(http.StatusServiceUnavailable)
	for i := range 6 { // one after the other, so that each is a call of its own, until the breaker opens
		w.insertInto(fmt.Sprintf("c-%d", i), 1)
		eventually(t, 20*time.Second, "parked", func() error {
			if n := w.ofSink("webhook", "k.status = 'parked'"); n <= i {
				return fmt.Errorf("%d parked", n)
			}
			return nil
		})
	}
	c.isWithin(10*time.Second, isDegraded, "sink:webhook", "left alone since", "outbox-cdc retry webhook asks at once")
	eventually(t, 3*time.Second, "said in the list", func() error {
		list, _ := c.command(nil, "events", "list", "--status", "parked", "--config", c.config)
		if strings.Count(list, "the destination, which is away since ")+strings.Count(list, "the destination is away, and it is asked next at ") != 6 {
			return fmt.Errorf("the list says\n%s", list)
		}
		return nil
	})

	// The receiver is still away: the probe is one request, and the breaker is open again.
	asked := w.hook.asked.Load()
	if out := retry("webhook"); !strings.HasPrefix(out, "webhook was asked, and is still away since ") || !strings.Contains(out, "503") || !strings.Contains(out, ", and is asked next at ") ||
		!strings.HasSuffix(out, "not due yet\n") {
		t.Errorf("it says %s", out)
	}
	eventually(t, 3*time.Second, "a probe", func() error {
		if n := w.hook.asked.Load() - asked; n != 1 {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
	c.isWithin(3*time.Second, isDegraded, "sink:webhook", "breaker open;")

	w.hook.status.Store(0)
	passes(t, time.Second)
	if got := len(w.hook.received()); got != 0 {
		t.Fatalf("%d events arrived before anybody said so", got)
	}
	if out := retry("--all"); !strings.HasPrefix(out, "webhook answers again; 6 parked, of which ") {
		t.Errorf("it says %s", out)
	}
	eventually(t, 3*time.Second, "all delivered", func() error {
		if got := len(w.hook.received()); got != 6 {
			return fmt.Errorf("%d of 6 arrived", got)
		}
		return nil
	})
	w.live(c, 10*time.Second)
	c.term()
	if out := retry("webhook"); !strings.Contains(out, "no connector streams from slot") {
		t.Errorf("without a connector it says %s", out)
	}
	w.verify(expectation{})
}
