package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

func TestRetry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dead := "attempts = 4, tries = 9, tried_at = now() - interval '1 day', error_message = 'status 400'"
	w.park(1, 1, "dead", dead)
	w.park(1, 2, "dead", dead+", next_attempt_at = 'infinity'")
	w.park(1, 3, "parked", "")
	w.park(2, 4, "dead", strings.Replace(dead, "tries = 9", "tries = 4", 1)) // all refused
	w.park(3, 5, "dead", dead)
	w.park(0, 6, "dead", "event = '{}'")
	conn := w.listen()

	o := ChangeOptions{Filter: Filter{Sinks: []string{"a"}}, DryRun: true}
	before := w.text(rowsNow)
	r, err := ChangeParked(pgtest.Context(t), w.admin, Retry, o)
	want := ChangeResult{Action: Retry, DryRun: true, Matched: 2, Sinks: []SinkRows{{Sink: "a", Rows: 2}}}
	if diff := cmp.Diff(want, r); diff != "" || err != nil || w.text(rowsNow) != before {
		t.Errorf("dry run: %v %s", err, diff)
	}
	var progress []int
	o.DryRun, o.Progress = false, func(done, total int) { progress = append(progress, done, total) }
	r, err = ChangeParked(pgtest.Context(t), w.admin, Retry, o)
	want.DryRun, want.Changed = false, 2
	if diff := cmp.Diff(want, r); diff != "" || err != nil {
		t.Errorf("retry: %v %s", err, diff)
	}
	if diff := cmp.Diff([]int{0, 2, 2, 2}, progress); diff != "" {
		t.Error(diff)
	}
	again := "1:0/1:parked:0:1:f:t:status 400 1:0/2:parked:0:1:f:t:status 400 1:0/3:parked:0:0:f"
	if got := w.text(rowsNow); !strings.HasSuffix(got, again+" 2:0/4:dead:4:4:t:status 400 3:0/5:dead:4:9:t:status 400") {
		t.Errorf("rows are now: %s", got)
	}
	if diff := cmp.Diff([]string{"public:1:rows:#:2:-2", "public:1"}, heard(t, conn)); diff != "" {
		t.Error(diff)
	}
	// Without a filter, rows of other connectors and rows of no sink are left alone.
	r, err = ChangeParked(pgtest.Context(t), w.admin, Retry, ChangeOptions{})
	if err != nil || r.Changed != 1 || r.Left != 1 {
		t.Errorf("retry of all: %+v, %v", r, err)
	}
	if got := w.text(rowsNow); !strings.HasPrefix(got, "0:0/6:dead") || !strings.HasSuffix(got, "2:0/4:parked:0:0:f:t:status 400 3:0/5:dead:4:9:t:status 400") {
		t.Errorf("rows are now: %s", got)
	}
}

func TestDiscardAndKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(1, 1, "dead", "tries = 3, error_message = 'status 400'")
	w.park(0, 2, "dead", "event = '{}', event_id = null")
	w.park(1, 3, "parked", "tries = 2, attempts = 1, next_attempt_at = now(), error_message = 'status 500'")
	w.park(1, 4, "parked", "")
	w.park(2, 5, "parked", "")
	conn := w.listen()
	asked := errors.New("no")
	o := ChangeOptions{Reason: "discarded by me: test\x00", Confirm: func(total int, sinks []SinkRows) error {
		if diff := cmp.Diff([]SinkRows{{Sink: noSink, Rows: 1}, {Sink: "a", Rows: 1}}, sinks); diff != "" || total != 2 {
			t.Errorf("asked for %d, %s", total, diff)
		}
		return asked
	}}
	before := w.text(rowsNow)
	if _, err := ChangeParked(pgtest.Context(t), w.admin, Discard, o); !errors.Is(err, asked) || w.text(rowsNow) != before {
		t.Errorf("the answer no: %v", err)
	}
	o.Confirm = nil
	r, err := ChangeParked(pgtest.Context(t), w.admin, Discard, o)
	if err != nil || r.Changed != 2 {
		t.Errorf("discard: %+v, %v", r, err)
	}
	want := "0:0/2:0:f:discarded:0:7:discarded by me: test� 1:0/1:0:t:discarded:3:7:discarded by me: test�"
	if got := w.text(logNow); got != want {
		t.Errorf("log %s\nwant %s", got, want)
	}
	r, err = ChangeParked(pgtest.Context(t), w.admin, Kill, ChangeOptions{Filter: Filter{IDs: []string{strings.ToUpper(eventID(3)), eventID(4)}}, Reason: "killed by me"})
	if err != nil || r.Changed != 2 {
		t.Errorf("kill: %+v, %v", r, err)
	}
	w.admin.DeadBlocks = true
	if r, err = ChangeParked(pgtest.Context(t), w.admin, Kill, ChangeOptions{Filter: Filter{Sinks: []string{"b"}}, Reason: "killed by me"}); err != nil || r.Changed != 1 {
		t.Errorf("kill with block: %+v, %v", r, err)
	}
	want = "1:0/3:dead:1:2:f:killed by me; before that: status 500 1:0/4:dead:0:0:f:killed by me 2:0/5:dead:0:0:f:f:killed by me"
	if got := w.text(rowsNow); got != want {
		t.Errorf("rows %s\nwant %s", got, want)
	}
	if got := w.text("select string_agg(coalesce(next_attempt_at::text, 'null'), ' ' order by commit_lsn) from outbox_parked"); got != "null null infinity" {
		t.Errorf("next attempts: %s", got)
	}
	want = " 1:0/3:0:t:dead:2:7:killed by me 1:0/4:0:t:dead:0:7:killed by me 2:0/5:0:t:dead:0:7:killed by me"
	if got := w.text(logNow); !strings.HasSuffix(got, want) {
		t.Errorf("log %s\nwant %s", got, want)
	}
	if diff := cmp.Diff([]string{"public:1:rows:#:0:-1", "public:1", "public:1:rows:#:-2:2", "public:1", "public:2:rows:#:-1:1", "public:2"}, heard(t, conn)); diff != "" {
		t.Error(diff)
	}
}

// If an action cannot be applied, the error says why, and nothing is changed.
func TestChangesThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(1, 1, "dead", "")
	w.park(1, 2, "parked", "")
	w.park(0, 3, "dead", "")
	w.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		values ('` + eventID(4) + `', 2, 1, 'delivered', now(), '0/4', 0, 1), ('` + eventID(4) + `', 2, 1, 'failed', now(), '0/4', 0, 1)`)
	before := w.text(rowsNow)
	ids := func(ns ...int) (f Filter) {
		for _, n := range ns {
			f.IDs = append(f.IDs, eventID(n))
		}
		return f
	}
	for _, tc := range []struct {
		action Action
		filter Filter
		want   string
	}{
		{Retry, Filter{Sinks: []string{"c"}}, `no sink "c"; those of connector "` + w.admin.Name + `" are: a, b`},
		{Retry, Filter{Sinks: []string{"b"}}, `no dead letter matches (sink "b"), of 2; nothing was changed`},
		{Kill, Filter{Type: "payment.*", Aggregate: "order/1"}, `no parked event matches (type "payment.*", aggregate "order/1"), of 1; nothing was changed`},
		{Retry, ids(1, 2), "event " + eventID(2) + " cannot be retried: it is no dead letter, but parked at a; nothing was changed"},
		{Discard, ids(4), "event " + eventID(4) + " cannot be discarded: it is no dead letter, but delivered at b; nothing was changed"},
		{Kill, ids(1), "event " + eventID(1) + " cannot be killed: it is no parked event, but dead at a; nothing was changed"},
		{Retry, ids(5), "event " + eventID(5) + " cannot be retried: the ledger has nothing of it, at these sinks; nothing was changed"},
		{Retry, Filter{IDs: []string{eventID(1)}, Tenant: "other"}, "it is no dead letter, but dead, and the other filters leave it out, at a"},
		{Retry, Filter{IDs: []string{"12"}}, `"12" is no event id: those of this outbox are of type uuid, as 0197a3c0-5f7e-7cc3-98c4-dc0c0c07398f`},
		{Retry, ids(3), "1 dead letter of no sink cannot be retried"},
		{Retry, Filter{Sinks: []string{noSink}}, "1 dead letter of no sink cannot be retried"},
	} {
		_, err := ChangeParked(pgtest.Context(t), w.admin, tc.action, ChangeOptions{Filter: tc.filter, Reason: "x"})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: %v, want %s", tc.action, tc.filter, err, tc.want)
		}
	}
	if got := w.text(rowsNow); got != before {
		t.Errorf("rows are now %s, and were %s", got, before)
	}
	w.exec("delete from outbox_parked")
	if _, err := ChangeParked(pgtest.Context(t), w.admin, Discard, ChangeOptions{}); err == nil || err.Error() != "there is no dead letter; nothing was changed" {
		t.Errorf("nothing there: %v", err)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(1, 1, "dead", "error_message = 'Status 400'")
	w.park(1, 12, "dead", `event = '{"aggregate_type":"order","aggregate_id":"1/2","event_type":"order.paid"}'`)
	w.park(2, 3, "dead", "parked_at = now() - interval '2 days'")
	w.park(0, 4, "dead", `event = '{"aggregate_type":"invoice"}'`)
	day := time.Now().Add(-24 * time.Hour)
	for want, f := range map[string]Filter{
		"4 1 12 3": {},
		"1 12":     {Sinks: []string{"a"}},
		"4 3":      {Sinks: []string{noSink, "b"}},
		"12":       {Type: "order.p*"},
		"1 12 3":   {Aggregate: "order"},
		"1":        {Error: "sTATUS"},
		"12 ":      {Aggregate: "order/1/2"},
		"1 3":      {Tenant: "acme"},
		"3":        {Until: day},
		"4 1 12":   {Since: day},
		"3 ":       {IDs: []string{eventID(3), eventID(12)}, Tenant: "acme"},
		"":         {Tenant: "acm"},
	} {
		got := ""
		err := EachDeadLetter(pgtest.Context(t), w.admin, DeadLetterQuery{Filter: f}, func(p *ParkedRow) (bool, error) {
			got += strings.TrimLeft(p.Event.ID[24:], "0") + " "
			if p.Payload != nil {
				t.Error("a payload that nobody asked for")
			}
			return true, nil
		})
		if err != nil || strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s: %s %v, want %s", f, got, err, want)
		}
	}
}

// There are more rows than a page and a chunk hold; another transaction has locked one of them; and a rate limits the
// changes.
func TestManyDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event)
		select 1, '0/0'::pg_lsn + n / 3, n % 3, gen_random_uuid(), n, 'dead', '{}' from generate_series(1, 1234) n`)
	conn := w.listen()
	r, err := ChangeParked(pgtest.Context(t), w.admin, Retry, ChangeOptions{Rate: 4000})
	if err != nil || r.Matched != 1234 || r.Changed != 1234 {
		t.Errorf("retry: %+v, %v", r, err)
	}
	chunk := []string{"public:1:rows:#:500:-500", "public:1"}
	if diff := cmp.Diff(slices.Concat(chunk, chunk, []string{"public:1:rows:#:234:-234", "public:1"}), heard(t, conn)); diff != "" {
		t.Error(diff)
	}
	w.exec("begin", "select from outbox_parked where tx_index = 1 and commit_lsn = '0/C8' for update") // in the second chunk
	r, err = ChangeParked(pgtest.Context(t), w.admin, Kill, ChangeOptions{})
	w.exec("rollback")
	if err == nil || r.Changed != 500 || !strings.HasPrefix(err.Error(), "another session holds rows of the ledger locked: 500 of 1234 killed, then: ") {
		t.Errorf("a locked row: %+v, %v", r, err)
	}
	if n := w.text("select count(*)::text from outbox_parked where status = 'dead'"); n != "500" {
		t.Errorf("%s are dead", n)
	}
	// The rate counts rows, not chunks: a chunk has the rows of a quarter of a second.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if r, err = ChangeParked(ctx, w.admin, Retry, ChangeOptions{Rate: 40}); err == nil || r.Changed < 10 || r.Changed > 60 {
		t.Errorf("40/s for a second: %+v, %v", r, err)
	}
}

// If no connector has run for long, the log has no partition for today.
func TestDiscardMakesThePartition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(1, 1, "dead", "")
	w.exec(`do $$ declare p text; begin for p in select inhrelid::regclass::text from pg_inherits where inhparent = 'outbox_delivery_log'::regclass
		loop execute 'drop table ' || p; end loop; end $$`)
	if r, err := ChangeParked(pgtest.Context(t), w.admin, Discard, ChangeOptions{Reason: "x"}); err != nil || r.Changed != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// The privileges of the connector's own login are enough.
func TestChangesNeedNoOwner(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(1, 1, "dead", "")
	w.park(1, 2, "parked", "")
	name, password := pgtest.NewLogin(t, w.conn)
	dsn := pgtest.WithLogin(t, w.admin.DSN, name, password)
	cfg := w.admin
	cfg.DSN = dsn
	_, err := ChangeParked(pgtest.Context(t), cfg, Retry, ChangeOptions{})
	exitcodetest.Want(t, err, exitcode.Privilege, "permission denied for table outbox_processors", "let the owner grant it")
	w.exec("grant select, insert, update, delete on outbox_processors, outbox_parked, outbox_checkpoints to "+name,
		"grant select, insert on outbox_delivery_log to "+name, "grant usage on schema public to "+name)
	for _, a := range []Action{Kill, Discard} {
		if _, err := ChangeParked(pgtest.Context(t), cfg, a, ChangeOptions{Filter: Filter{Sinks: []string{"a"}}, Reason: "x"}); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	if _, err := Pause(pgtest.Context(t), cfg, []string{"a"}); err != nil {
		t.Error(err)
	}
	if d, err := ShowEvent(pgtest.Context(t), cfg, EventDetailsQuery{ID: eventID(2)}); err != nil || d.Event != nil || len(d.Log) != 2 {
		t.Errorf("%+v, %v", d, err) // the view is not among what it may read
	}
	_, err = Events(pgtest.Context(t), cfg, EventsQuery{Limit: 1})
	exitcodetest.Want(t, err, exitcode.Privilege, "event_outbox_status")
	cfg.Source.LedgerSchema = "elsewhere"
	_, err = Pause(pgtest.Context(t), cfg, []string{"a"})
	exitcodetest.Want(t, err, exitcode.Config, "is source.ledger_schema right?")
	cfg.DSN = "postgres://127.0.0.1:1/x"
	_, err = Pause(pgtest.Context(t), cfg, []string{"a"})
	exitcodetest.Want(t, err, exitcode.Unavailable)
}

func TestPause(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(2, 1, "parked", "")
	conn := w.listen()
	for _, tc := range []struct {
		set  func(context.Context, Config, []string) ([]PauseResult, error)
		want PauseResult
	}{
		{Pause, PauseResult{Sink: "b", Paused: true, Changed: true, Waiting: 1}},
		{Pause, PauseResult{Sink: "b", Paused: true, Waiting: 1}},
		{Resume, PauseResult{Sink: "b", Changed: true, Waiting: 1}},
		{Resume, PauseResult{Sink: "b", Waiting: 1}},
	} {
		tc.want.Outcome, tc.want.Slot = OutcomeNoConnector, "shop"
		got, err := tc.set(pgtest.Context(t), w.admin, []string{"b"})
		if diff := cmp.Diff([]PauseResult{tc.want}, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
		if got := w.text("select is_active::text from outbox_processors where id = 2"); got != fmt.Sprint(!tc.want.Paused) {
			t.Errorf("is_active = %s", got)
		}
	}
	if diff := cmp.Diff([]string{"public:2", "public:2", "public:2", "public:2"}, heard(t, conn)); diff != "" {
		t.Error(diff)
	}
	_, err := Pause(pgtest.Context(t), w.admin, []string{"a", "x"})
	if err == nil || !strings.HasPrefix(err.Error(), `no sink "x"; those of`) || w.text("select is_active::text from outbox_processors where id = 1") != "true" {
		t.Errorf("an unknown sink: %v", err)
	}
	if _, err = Pause(pgtest.Context(t), w.admin, []string{noSink}); err == nil {
		t.Error("what belongs to no sink was paused")
	}
	w.exec("delete from outbox_processors")
	if _, err = Pause(pgtest.Context(t), w.admin, []string{"a"}); err == nil || !strings.Contains(err.Error(), "has none yet") {
		t.Errorf("no sinks: %v", err)
	}
}
