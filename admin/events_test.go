package admin

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// The list of parked events says what each of them waits for.
func TestParkedEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(1, 1, "parked", "attempts = 1, tries = 2, tried_at = now(), next_attempt_at = now() + interval '90 s', error_message = 'status 500'")
	w.park(1, 11, "parked", "")
	w.park(1, 2, "parked", "next_attempt_at = now() - interval '1 s'")
	w.park(1, 3, "dead", "next_attempt_at = 'infinity'")
	w.park(1, 13, "parked", "")
	w.park(1, 4, "parked", "")
	w.park(2, 5, "parked", "")
	w.exec("update outbox_processors set is_active = false where id = 2")
	var all []string
	q := EventsQuery{Status: "parked", Limit: 4}
	for pages := 0; ; pages++ {
		page, err := Events(pgtest.Context(t), w.admin, q)
		if err != nil || len(page.Parked) > 4 || pages > 1 {
			t.Fatal(page, err)
		}
		for _, p := range page.Parked {
			all = append(all, fmt.Sprintf("%s %s %d/%d %s|%s", p.Sink, strings.TrimLeft(p.Event.ID[24:], "0"), p.Attempts, p.Tries, p.Waits, strings.TrimLeft(p.Behind, "0-78")))
			if p.Event.Metadata != nil || p.Payload != nil {
				t.Error("a list with metadata or payload")
			}
		}
		if q.After = page.Next; q.After == "" {
			break
		}
	}
	nobody := fmt.Sprintf("a connector: none streams from slot %q|", w.admin.Source.Slot)
	want := []string{
		"a 1 1/2 " + nobody, "a 2 0/0 " + nobody, "a 4 0/0 " + nobody, "a 11 0/0 " + nobody + "1",
		"a 13 0/0 behind the dead letter " + eventID(3) + "|3", "b 5 0/0 the sink is paused: outbox-cdc resume b|",
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
	page, err := Events(pgtest.Context(t), w.admin, EventsQuery{Status: "dead", Limit: 1})
	if err != nil || len(page.Parked) != 1 || page.Next != "" || !page.Parked[0].Blocks || page.Parked[0].NextAttempt != nil {
		t.Errorf("%+v, %v", page, err)
	}
	for status, afters := range map[string][]string{
		"dead": {"1", "x,0/0,0", "1,x,0", "1,0/0,x"}, "failed": {"yesterday,1", "2026-01-31T00:00:00Z", "2026-01-31T00:00:00Z,", "2026-01-31T00:00:00Z,x", "0001-01-01T00:00:00Z,1"},
		"": {"yesterday," + eventID(1), "2026-01-31T00:00:00Z,1", "2026-01-31T00:00:00Z,(" + eventID(1) + ")", "0001-01-01T00:00:00Z," + eventID(1)},
	} {
		for _, after := range afters {
			_, err := Events(pgtest.Context(t), w.admin, EventsQuery{Status: status, Limit: 1, After: after})
			if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf(`--after %q is not where such a list has ended, as `, after)) {
				t.Errorf("status %q, after %s: %v", status, after, err)
			}
		}
	}
	for _, id := range []string{"x", "urn:uuid:" + eventID(1), "(" + eventID(1) + ")"} {
		_, err := Events(pgtest.Context(t), w.admin, EventsQuery{Status: "dead", Limit: 1, Filter: Filter{IDs: []string{eventID(1), id}}})
		if want := fmt.Sprintf("%q is no event id: those of this outbox are of type uuid, as 0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f", id); err == nil || err.Error() != want {
			t.Errorf("id %s: %v", id, err)
		}
	}
}

func TestEventsOfTheLogAndTheOutbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for n := 1; n <= 4; n++ {
		w.exec(fmt.Sprintf(`insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
			values ('%s', 'order', '%d', 'made', '{}', now() - %d * interval '1 min')`, eventID(n), n, n))
	}
	w.exec(`insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) values ('` + eventID(5) + `', 'order', '5', 'made', '{}', now() - interval '1 day')`)
	log := func(n int, status string, ago string) {
		w.exec(fmt.Sprintf(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, started_at, completed_at, duration_ms, error_message, commit_lsn, tx_index, epoch)
			values ('%s', 1, 1, '%s', now(), now() - interval '%s', 5, 'Status 500', '0/1', %d, 1)`, eventID(n), status, ago, n))
	}
	log(1, "delivered", "1 s")
	w.exec("update outbox_delivery_log set member = 'kafka'")
	log(2, "failed", "3 s")
	log(2, "failed", "2 s")
	log(2, "failed", "1 s")
	log(3, "discarded", "1 s")
	w.park(1, 2, "parked", "next_attempt_at = now()")
	list := func(q EventsQuery) (got []string) {
		t.Helper()
		q.Limit = 2
		for {
			page, err := Events(pgtest.Context(t), w.admin, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range page.Tries {
				got = append(got, fmt.Sprintf("%s:%s:%s", strings.TrimLeft(e.EventID[24:], "0"), e.Sink, e.Status))
			}
			for _, e := range page.Events {
				got = append(got, fmt.Sprintf("%s:%s%s", strings.TrimLeft(e.ID[24:], "0"), e.Status, strings.TrimPrefix(fmt.Sprint(e.Members), "map[]")))
			}
			if q.After = page.Next; q.After == "" {
				return got
			}
		}
	}
	for _, tc := range []struct {
		q    EventsQuery
		want string
	}{
		{EventsQuery{Status: "failed"}, "2:a:failed 2:a:failed 2:a:failed"},
		{EventsQuery{Status: "failed", Filter: Filter{Sinks: []string{"b"}}}, ""},
		{EventsQuery{Status: "failed", Filter: Filter{Error: "status", IDs: []string{eventID(2)}}}, "2:a:failed 2:a:failed 2:a:failed"},
		{EventsQuery{Status: "failed", Filter: Filter{Until: time.Now().Add(-time.Hour)}}, ""},
		{EventsQuery{Status: "discarded"}, "3:a:discarded"},
		{EventsQuery{}, "1:deliveredmap[a:kafka] 2:parked 3:discarded 4:pending"},
		{EventsQuery{Status: "pending"}, "4:pending"},
		{EventsQuery{Status: "delivered"}, "1:deliveredmap[a:kafka]"},
		{EventsQuery{Status: "pending", Filter: Filter{Since: time.Now().Add(-48 * time.Hour), Aggregate: "order/5"}}, "5:pending"},
		{EventsQuery{Filter: Filter{IDs: []string{eventID(5), eventID(2)}}}, "2:parked 5:pending"},
	} {
		if got := strings.Join(list(tc.q), " "); got != tc.want {
			t.Errorf("%s (%s): %s, want %s", tc.q.Status, tc.q.Filter, got, tc.want)
		}
	}
	for want, q := range map[string]EventsQuery{
		"the log has no type, aggregate or tenant": {Status: "failed", Filter: Filter{Type: "x"}},
		"are listed over all sinks":                {Filter: Filter{Sinks: []string{"a"}}},
		"is no event id":                           {Filter: Filter{IDs: []string{"x"}}},
		`no sink "x"`:                              {Status: "parked", Filter: Filter{Sinks: []string{"x"}}},
	} {
		q.Limit = 1
		if _, err := Events(pgtest.Context(t), w.admin, q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	d, err := ShowEvent(pgtest.Context(t), w.admin, EventDetailsQuery{ID: eventID(2), Payload: true})
	if err != nil || d.Event == nil || d.Event.Status != "parked" || len(d.Parked) != 1 || string(d.Parked[0].Payload) != `{"n": 2}` || len(d.Log) != 3 {
		t.Errorf("%+v, %v", d, err)
	}
	d, err = ShowEvent(pgtest.Context(t), w.admin, EventDetailsQuery{ID: eventID(1)})
	if err != nil || len(d.Log) != 1 || d.Log[0].Member != "kafka" {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err = ShowEvent(pgtest.Context(t), w.admin, EventDetailsQuery{ID: eventID(9)}); err == nil || !strings.HasPrefix(err.Error(), "nothing is known of event") {
		t.Error(err)
	}
}

func TestShowDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(1, 1, "dead", `payload = '\xff00'`)
	w.park(1, 2, "dead", "")
	w.park(1, 3, "parked", "")
	w.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		values ('` + eventID(1) + `', 1, 1, 'failed', now() - interval '1 s', '0/1', 0, 1), ('` + eventID(1) + `', 1, 2, 'dead', now(), '0/1', 0, 1),
			('` + eventID(1) + `', 2, 1, 'delivered', now(), '0/1', 0, 1)`)
	letters, err := ShowDeadLetters(pgtest.Context(t), w.admin, DeadLetterQuery{Filter: Filter{IDs: []string{eventID(1)}}, Payload: true, Limit: 5})
	if err != nil || len(letters) != 1 {
		t.Fatal(letters, err)
	}
	l := letters[0]
	if string(l.PayloadBase64) != "\xff\x00" || l.Payload != nil || len(l.Log) != 2 || l.Log[0].Status != "dead" || string(l.Event.Metadata) != `{"nul":"\u0000"}` {
		t.Errorf("%+v", l)
	}
	if letters, err = ShowDeadLetters(pgtest.Context(t), w.admin, DeadLetterQuery{Filter: Filter{}, Limit: 1}); err != nil || len(letters) != 1 || letters[0].PayloadBase64 != nil {
		t.Error(letters, err)
	}
	for want, f := range map[string]Filter{
		"event " + eventID(3) + " cannot be shown as a dead letter: it is no dead letter, but parked at a": {IDs: []string{eventID(3)}},
		`no dead letter matches (tenant "x"), of 2`:                                                        {Tenant: "x"},
	} {
		if _, err := ShowDeadLetters(pgtest.Context(t), w.admin, DeadLetterQuery{Filter: f, Limit: 1}); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
