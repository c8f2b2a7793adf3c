package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// told is how long a person who changes something waits at most until the connector that runs has done its part: it is told,
// and would look by itself only every 30 s.
const told = time.Second

// reported checks the report of TestPersonActs: the last minute is in it, because the process has ended. What a person has killed has died
// by the log, and is nobody's failure.
func (w *world) reported(output string) {
	w.t.Helper()
	var r struct {
		Sinks []struct {
			Period, Budget struct{ Events int }
			Died           int
			Dead           int `json:"dead_letters"`
		}
		Failures []any
		Stages   any
		Unknown  []string
	}
	if err := json.Unmarshal([]byte(output), &r); err != nil || len(r.Sinks) != 1 {
		w.t.Errorf("the report: %v in %s", err, output)
		return
	}
	s := r.Sinks[0]
	if s.Period.Events != 6 || s.Budget.Events != 6 || s.Died != 3 || s.Dead != 1 || len(r.Failures) == 0 || r.Stages != nil ||
		!slices.Equal(r.Unknown, []string{"the slowest stage: no instance streams"}) {
		w.t.Errorf("the report:\n%s", output)
	}
}

// A person looks at dead letters, retries and discards them, gives up on what waits, and pauses the sink, while the connector runs.
func TestPersonActs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}, delivery: map[string]any{"retry": map[string]any{"initial": "5m", "max": "10m"}}})
	c := w.connector()
	c.start()
	c.ready("leader")
	run := func(line string, code exitcode.Code, words ...string) string {
		t.Helper()
		out, got := c.command(nil, append(strings.Fields(line), "--config", c.config)...)
		for _, word := range words {
			if got != code || !strings.Contains(out, word) {
				t.Errorf("%s: exit code %d, want %d and %q in\n%s", line, got, code, word, out)
			}
		}
		return out
	}
	made := func(aggregate, tenant string) string {
		t.Helper()
		return ask[string](w, `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, tenant_id)
			values ('order', $1, 'made', '{"secret": "canary"}', $2) returning id::text`, aggregate, tenant)
	}
	waits := func(id, condition string) {
		t.Helper()
		eventually(t, 20*time.Second, id+" "+condition, func() error {
			if n := ask[int](w, "select count(*) from outbox_parked where event_id = $1 and "+condition, id); n != 1 {
				return fmt.Errorf("it is not")
			}
			return nil
		})
	}
	arrives := func(ids ...string) {
		t.Helper()
		eventually(t, told, "arrival", func() error {
			got := w.hook.received()
			for _, id := range ids {
				if !slices.ContainsFunc(got, func(d delivery) bool { return d.id == id }) {
					return fmt.Errorf("%s is not there, of %d", id, len(got))
				}
			}
			return nil
		})
	}

	// A dead letter that is retried arrives at once, and one that is discarded never.
	w.hook.status.Store(http.StatusBadRequest)
	first, second := made("a", "acme"), made("b", "other")
	waits(first, "status = 'dead'")
	waits(second, "status = 'dead'")
	if out := run("dlq list --type made --error 400", 0, first, second, "webhook", "order/a"); strings.Contains(out, "canary") {
		t.Error("a list shows payloads")
	}
	run("dlq show "+first, 0, "400", "tenant:         acme", "position:")
	run("dlq show --payload --tenant acme", 0, "canary")
	run("dlq export --payload", 0, `"payload":{"secret":"canary"}`, second)
	w.hook.status.Store(0)
	run("dlq retry --tenant acme --dry-run", 0, "would retry 1 event (1 of webhook)")
	run("dlq retry --tenant acme", 0, "retried: 1 event (1 of webhook)")
	arrives(first)
	eventually(t, 20*time.Second, "settled", func() error {
		if n := w.ofSink("webhook", "k.status = 'parked'"); n > 0 {
			return fmt.Errorf("%d parked", n)
		}
		return nil
	})
	run("dlq retry --id "+first, 1, "it is no dead letter, but delivered at webhook")
	run("dlq discard --id "+second, 2, "use --yes")
	run("dlq discard --id "+second+" --reason test --yes", 0, "discarded: 1 event")
	run("dlq list", 0, "no dead letters")
	if got := ask[string](w, "select error_message from outbox_delivery_log where status = 'discarded' and event_id = $1", second); !strings.HasSuffix(got, ": test") {
		t.Errorf("the log says %q", got)
	}

	// What waits for its next attempt is given up on; what waits behind it arrives at once.
	w.hook.status.Store(http.StatusInternalServerError)
	third := made("c", "acme")
	waits(third, "attempts = 1")
	fourth := made("c", "acme")
	waits(fourth, "next_attempt_at is null")
	run("events list --status parked", 0, third, "its next attempt, in ", "1/1", "behind "+third)
	run("events show "+fourth, 0, "waits for:      behind "+third)
	w.hook.status.Store(0)
	run("dlq kill --id "+third+" --yes", 0, "killed: 1 event (1 of webhook)")
	arrives(fourth)

	// A paused sink gets nothing, the slot goes on, and after resume all comes, in order.
	run("pause hook", 1, "those of connector \""+w.slot+"\" are: webhook")
	run("pause webhook", 0, "webhook is paused; 0 parked")
	eventually(t, told, "paused", func() error {
		h, err := c.health()
		if err != nil {
			return err
		}
		if detail := h.Components["sink:webhook"].Detail; !strings.Contains(detail, "paused by a person") {
			return fmt.Errorf("it says %q", detail)
		}
		return nil
	})
	fifth, sixth := made("a", "acme"), made("a", "acme")
	waits(fifth, "status = 'parked'")
	waits(sixth, "status = 'parked'")
	w.allPassed(20 * time.Second)
	run("events list --status parked", 0, "the sink is paused")
	run("pause webhook", 0, "as it was before")
	c.term()
	c.start() // it stays paused
	c.ready("leader")
	if got := w.hook.received(); len(got) != 2 {
		t.Errorf("%d events arrived, want 2", len(got))
	}
	run("resume webhook", 0, "webhook is delivered to; 2 parked")
	arrives(fifth, sixth)
	w.live(c, 20*time.Second)
	for id, want := range map[string]string{first: "dead delivered", second: "dead discarded", third: "failed dead", fourth: "delivered", sixth: "delivered"} {
		if got := ask[string](w, "select string_agg(status, ' ' order by completed_at) from outbox_delivery_log where event_id = $1", id); got != want {
			t.Errorf("the log of %s says %s, want %s", id, got, want)
		}
	}
	run("report", 0, "DEAD LETTERS", "FAILED TRIES", "SLOWEST STAGES\nOf the instance that streams, pid ")
	c.term()
	w.reported(run("report --since 1h -o json", 0))
	w.verify(expectation{retried: map[string]int{first: 1}, status: map[string]string{second: "discarded", third: "dead"}})
}
