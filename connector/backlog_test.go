package connector

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// backlogBench is a connector whose outbox had rows before there was a slot, and has jobs for them.
type backlogBench struct {
	*connectorBench
	mu   sync.Mutex
	seen []string // aggregate/event of what the sink has accepted
}

// newBacklogBench inserts rows of these aggregates, each with so many events, makes the slot, and files a job.
func newBacklogBench(t *testing.T, aggregates, events int) *backlogBench {
	b := &backlogBench{connectorBench: newConnectorBench(t)}
	b.cfg.Source.OrderBy = []string{"created_at", "id"}
	b.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
		select 't', 'a' || n % $1, 'e' || lpad((n / $1)::text, 6, '0'), '{}', '2024-01-01'::timestamptz + n / 1000 * interval '1 s' from generate_series(0, $1::int * $2::int - 1) n`, aggregates, events)
	b.exec("update event_outbox set id = ('00000000-0000-7000-8000-' || lpad(to_hex(substr(event_type, 2)::int * 65536 + substr(aggregate_id, 2)::int), 12, '0'))::uuid")
	b.setSinkOfMessages(nil)
	b.exec(`update outbox_checkpoints set state = 'building'`)
	b.exec("select pg_drop_replication_slot($1)", b.cfg.Source.Slot)
	var start string
	if err := b.conn.QueryRow(t.Context(), "select lsn::text from pg_create_logical_replication_slot($1, 'pgoutput')", b.cfg.Source.Slot).Scan(&start); err != nil {
		t.Fatal(err)
	}
	b.exec("update outbox_checkpoints set state = 'ready', prefix_lsn = $1, prefix_index = -1, confirmed_lsn = $1", start)
	b.exec("insert into outbox_processors (id, connector, processor_name, processor_type, since) overriding system value values (1, 'test', 's', 'test', '-infinity')")
	b.exec("select setval(pg_get_serial_sequence('outbox_processors', 'id'), 1)")
	b.file(ledger.NewJob{Processor: 1, Reason: ledger.JobOfInit}, start)
	return b
}

func (b *backlogBench) file(j ledger.NewJob, start string) {
	b.t.Helper()
	if err := j.Start.Scan(start); err != nil {
		b.t.Fatal(err)
	}
	if err := pgx.BeginFunc(b.t.Context(), b.conn, func(tx pgx.Tx) error {
		return ledger.Schema("public").FileJobs(b.t.Context(), tx, []ledger.NewJob{j})
	}); err != nil {
		b.t.Fatal(err)
	}
}

// setSinkOfMessages makes the sink note what it accepts. answer may be nil.
func (b *backlogBench) setSinkOfMessages(answer fakeSink) {
	b.cfg.Sinks[0].Open = func() (sinks.Sink, error) {
		return fakeSink(func(ctx context.Context, batch []sinks.Message) []error {
			var errs []error
			if answer != nil {
				errs = answer(ctx, batch)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			for i, m := range batch {
				if errs == nil || errs[i] == nil {
					b.seen = append(b.seen, m.Event.AggregateID+"/"+m.Event.EventType)
				}
			}
			return errs
		}), nil
	}
}

// check compares what the sink has accepted: each event once, in order within each aggregate, the backlog before what came later.
func (b *backlogBench) check(want int) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	last := map[string]string{}
	for _, s := range b.seen {
		aggregate, event, _ := strings.Cut(s, "/")
		if event <= last[aggregate] {
			b.t.Errorf("%s comes after %s of %s", event, last[aggregate], aggregate)
		}
		last[aggregate] = event
	}
	if len(b.seen) != want {
		b.t.Errorf("%d events were accepted, want %d", len(b.seen), want)
	}
}

func (b *backlogBench) rows() string {
	return "select count(*)::text || ' ' || coalesce((select string_agg(status, ',' order by id) from outbox_backlog), '') from outbox_parked"
}

// While a job is half-way, Status shows how far it is. Afterwards it shows no job.
func TestStatusOfABacklog(t *testing.T) {
	t.Parallel()
	b := newBacklogBench(t, 10, 2500)
	b.exec("select pg_advisory_lock(24)") // on it the third chunk waits
	b.exec(`update outbox_backlog set filter = jsonb_build_object('where', $1::text)`,
		"substr(event_type, 2)::int < 1000 or set_config('lock_timeout', '0', true) is not null and pg_advisory_xact_lock_shared(24) is not null")
	r := b.run()
	shown := func() *monitoring.BacklogReport {
		return monitoring.NewBacklogReport(r.connector.Status().Sinks[0].Backlog)
	}
	b.waitFor("two chunks", func() bool { s := shown(); return s != nil && s.Walked == 10_000 && s.Rate != nil })
	s := shown()
	if s.Reason != "init" || s.Parked != 10_000 || s.Left == nil || *s.Left != 15_000 || *s.Rate <= 0 || s.SecondsLeft == nil || s.WaitsFor != "" || s.Filed.IsZero() {
		t.Errorf("%+v", s)
	}
	b.exec("select pg_advisory_unlock(24)")
	b.eventually(b.rows(), "0 done")
	b.waitFor("no job", func() bool { return shown() == nil })
	r.stop()
}

// A backlog is delivered once and in order, and what comes meanwhile comes behind it.
func TestBacklog(t *testing.T) {
	t.Parallel()
	b := newBacklogBench(t, 10, 2500)
	r := b.run()
	for i := range 20 {
		b.event(fmt.Sprint("a", i%10), fmt.Sprintf("f%06d", i))
	}
	b.eventually("select count(*)::text from outbox_delivery_log where status = 'delivered'", "25020")
	b.eventually(b.rows(), "0 done")
	b.event("a1", "g")
	b.eventually("select count(*)::text from outbox_delivery_log where status = 'delivered'", "25021")
	r.stop()
	b.check(25021)
	b.eventually("select (walked >= 25000) || ' ' || ordinal from outbox_backlog", "true 25000")
}

// A job goes on where it was when its session ended, at any moment.
func TestBacklogResumes(t *testing.T) {
	t.Parallel()
	b := newBacklogBench(t, 10, 3000)
	for i := 0; ; i++ {
		r := b.run()
		b.eventually("select (count(*) >= least(30000, "+fmt.Sprint(i*7000)+"))::text from outbox_delivery_log where status = 'delivered'", "true")
		b.event("a1", fmt.Sprintf("f%06d", i))
		r.stop()
		var done bool
		if err := b.conn.QueryRow(t.Context(), "select status = 'done' from outbox_backlog").Scan(&done); err != nil {
			t.Fatal(err)
		}
		if done && i >= 4 {
			break
		}
	}
	r := b.run()
	b.event("a1", "g")
	b.eventually("select count(*)::text from outbox_delivery_log l join event_outbox e on e.id = l.event_id where status = 'delivered' and event_type = 'g'", "1")
	b.eventually(b.rows(), "0 done")
	r.stop()
	b.mu.Lock()
	n := len(b.seen)
	unique := slices.Compact(slices.Sorted(slices.Values(b.seen)))
	b.mu.Unlock()
	if n != len(unique) {
		t.Errorf("%d events were accepted, of which %d are different: the sessions have ended clean", n, len(unique))
	}
	b.check(n)
	if n < 30005 {
		t.Errorf("only %d events", n)
	}
}
