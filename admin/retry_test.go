package admin

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

func TestRetryNow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	later := "next_attempt_at = now() + interval '1 hour'"
	w.park(1, 1, "parked", "attempts = 1, tries = 3, tried_at = now(), error_message = 'away', "+later)
	w.park(1, 2, "parked", later) // not attempted, because its topic is away
	w.park(1, 3, "parked", "tries = 1, next_attempt_at = '2000-01-01'")
	w.park(1, 4, "parked", "")
	w.park(1, 5, "dead", "next_attempt_at = 'infinity'")
	w.park(1, 6, "dead", "")
	w.park(2, 7, "parked", "tries = 1, "+later)
	w.park(3, 8, "parked", "tries = 1, "+later)
	w.exec("update outbox_processors set is_active = false where id = 2")
	conn := w.listen()

	var progress []int
	o := RetryNowOptions{Sinks: []string{"a"}, Progress: func(done, total int) { progress = append(progress, done, total) }}
	r, err := RetryNow(pgtest.Context(t), w.admin, o)
	none := SinkNow{Outcome: OutcomeNoConnector}
	want := RetryNowResult{Sinks: []RetriedSink{{Sink: "a", MadeDue: 2, Parked: 4, SinkNow: none}}, Slot: "shop"}
	if diff := cmp.Diff(want, r); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if diff := cmp.Diff([]int{0, 2, 2, 2}, progress); diff != "" {
		t.Error(diff)
	}
	rows := "1:0/1:parked:1:3:t:t:away 1:0/2:parked:0:0:f:t 1:0/3:parked:0:1:f:t 1:0/4:parked:0:0:f 1:0/5:dead:0:0:f:f 1:0/6:dead:0:0:f"
	if got := w.text(rowsNow); got != rows+" 2:0/7:parked:0:1:f:f 3:0/8:parked:0:1:f:f" {
		t.Errorf("rows are now: %s", got)
	}
	if got := w.text("select next_attempt_at::text from outbox_parked where commit_lsn = '0/3'"); !strings.HasPrefix(got, "2000") {
		t.Errorf("a row that was due for long is due since %s: it loses its turn", got)
	}
	if diff := cmp.Diff([]string{"public:1:retry", "public:1"}, heard(t, conn)); diff != "" {
		t.Error(diff)
	}

	// Every sink of this connector, and none of another. Nothing of "a" waits any more, but it is asked all the same.
	r, err = RetryNow(pgtest.Context(t), w.admin, RetryNowOptions{})
	want.Sinks = []RetriedSink{{Sink: "a", Parked: 4, SinkNow: none}, {Sink: "b", MadeDue: 1, Parked: 1, Paused: true, SinkNow: none}}
	if diff := cmp.Diff(want, r); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if got := w.text(rowsNow); !strings.HasSuffix(got, " 2:0/7:parked:0:1:f:t 3:0/8:parked:0:1:f:f") {
		t.Errorf("rows are now: %s", got)
	}
	if diff := cmp.Diff([]string{"public:1:retry", "public:2:retry", "public:2"}, heard(t, conn)); diff != "" {
		t.Error(diff)
	}
}

// More rows wait than one transaction changes. All become due at one time, so that they are tried in the order of their positions; the
// connector is told to ask once; and rows that were never tried, which are most, are not even looked at.
func TestRetryNowOfManyRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, tries, next_attempt_at, event)
		select 1, '0/0'::pg_lsn + n / 3, n % 3, gen_random_uuid(), 7919 * n % 1000 - 500, 'parked', 1, now() + interval '1 hour', '{}'
		from generate_series(1, 1234) n`,
		`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event)
		select 1, '1/0'::pg_lsn + n, 0, gen_random_uuid(), n % 1000 - 500, 'parked', '{}' from generate_series(1, 20000) n`)
	conn := w.listen()
	var progress []string
	o := RetryNowOptions{Progress: func(done, total int) { progress = append(progress, strconv.Itoa(done)+"/"+strconv.Itoa(total)) }}
	r, err := RetryNow(pgtest.Context(t), w.admin, o)
	if err != nil || len(r.Sinks) != 2 || r.Sinks[0].MadeDue != 1234 || r.Sinks[0].Parked != 21234 {
		t.Errorf("%+v, %v", r, err)
	}
	if got := strings.Join(progress, " "); got != "0/1234 500/1234 1000/1234 1234/1234 1234/1234" {
		t.Errorf("progress %s", got)
	}
	const times = "select concat(count(distinct next_attempt_at), ' ', bool_and(next_attempt_at <= now())) from outbox_parked"
	if got := w.text(times); got != "1 t" {
		t.Errorf("times of the rows, and whether all are due: %s", got)
	}
	if diff := cmp.Diff([]string{"public:1:retry", "public:1", "public:1", "public:1", "public:2:retry"}, heard(t, conn)); diff != "" {
		t.Error(diff)
	}

	w.exec("update outbox_parked set next_attempt_at = now() + interval '1 hour' where tries > 0",
		"begin", "select from outbox_parked where agg_hash = 0 and tries > 0 for update") // in the second transaction
	_, err = RetryNow(pgtest.Context(t), w.admin, RetryNowOptions{})
	w.exec("rollback")
	if err == nil || !strings.HasPrefix(err.Error(), `another session holds rows of the ledger locked: sink "a", after 500 events made due: `) {
		t.Errorf("a locked row: %v", err)
	}
}

func TestRetryNowOfUnknownSinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park(1, 1, "parked", "tries = 1, next_attempt_at = now() + interval '1 hour'")
	w.admin.Composites = []Composite{{Name: "both", Members: []string{"a", "b"}}, {Name: "b", Members: []string{"kafka", "spare"}, OneSink: true}}
	before := w.text(rowsNow)
	for name, want := range map[string]string{
		"x":     `no sink "x"; those of connector "shop" are: a, b`,
		noSink:  `no sink "none"; those of`,
		"both":  `no sink "both": it is a composite, and its members are the sinks: a, b`,
		"spare": `no sink "spare": it is a member of the composite b, which is the sink`,
	} {
		_, err := RetryNow(pgtest.Context(t), w.admin, RetryNowOptions{Sinks: []string{"a", name}})
		if err == nil || !strings.HasPrefix(err.Error(), want) || w.text(rowsNow) != before {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.exec("delete from outbox_processors")
	if _, err := RetryNow(pgtest.Context(t), w.admin, RetryNowOptions{}); err == nil || !strings.Contains(err.Error(), "has none yet") {
		t.Errorf("no sinks: %v", err)
	}
	cfg := w.admin
	cfg.DSN = "postgres://127.0.0.1:1/x"
	_, err := RetryNow(pgtest.Context(t), cfg, RetryNowOptions{})
	exitcodetest.Want(t, err, exitcode.Unavailable)
}
