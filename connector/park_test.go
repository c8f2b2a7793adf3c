package connector

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// newParkingBench makes a bench whose connector parks what the sink does not accept.
func newParkingBench(t *testing.T) *connectorBench {
	b := newConnectorBench(t)
	b.cfg.Delivery.ParkAfter = 2 * time.Second
	b.cfg.Delivery.MaxRetries = 1
	b.cfg.Breaker = BreakerConfig{Enabled: true, MaxFailures: 3, ResetTimeout: 300 * time.Millisecond}
	return b
}

// answerByType makes the sink answer each message as errs says for its event type.
func (b *connectorBench) answerByType(errs func(eventType string) error) {
	b.setSink(func(_ context.Context, batch []sinks.Message) []error {
		out := make([]error, len(batch))
		behind := map[string]bool{}
		for i, m := range batch {
			if behind[m.Key] {
				out[i] = sinks.ErrNotAttempted
			} else if out[i] = errs(m.Event.EventType); out[i] != nil {
				behind[m.Key] = true
			}
		}
		return out
	})
}

// takeSinkAway makes the sink unavailable until the value that it returns is set to false.
func (b *connectorBench) takeSinkAway() *atomic.Bool {
	var away atomic.Bool
	away.Store(true)
	b.answerByType(func(string) error {
		if away.Load() {
			return fmt.Errorf("dial: %w", sinks.ErrUnavailable)
		}
		return nil
	})
	return &away
}

const parkedRowsQuery = "select coalesce(string_agg(concat_ws(':', event ->> 'event_type', status, attempts, tries), ' ' order by commit_lsn, tx_index), '') from outbox_parked"

// A sink that is away holds nobody up: its events are parked, and the slot moves. When the sink is back, it gets all of them in order.
func TestSinkAwayIsParked(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	away := b.takeSinkAway()
	r := b.run()
	want := ""
	for i := range 100 {
		name := fmt.Sprintf("a%02d", i)
		b.event("a", name)
		want += name + " "
	}
	b.eventually("select count(*) from outbox_parked", "100")
	b.eventually("select ("+confirmedQuery+") >= (select max(commit_lsn) from outbox_parked)", "true")
	r.stop()
	r = b.run()
	b.event("a", "last")
	b.eventually("select count(*) from outbox_parked", "101")
	if got := b.query("select sum(attempts) from outbox_parked"); got != "0" {
		t.Errorf("%s attempts were used up by an outage", got)
	}
	away.Store(false)
	b.eventually("select count(*) from outbox_parked", "0")
	if got := b.received(); got != want+"last" {
		t.Errorf("received %s", got)
	}
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "101")
	r.stop()
}

// A refused message holds only its own aggregate. When it is dead, the aggregate goes on.
func TestRefusedHoldsItsAggregate(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.answerByType(func(eventType string) error {
		if eventType == "poison" {
			return errRefused
		}
		return nil
	})
	b.cfg.Delivery.Retry = Retry{Initial: 500 * time.Millisecond, Max: time.Second}
	r := b.run()
	b.event("a", "poison")
	b.event("a", "a2")
	b.event("b", "b1")
	b.eventually(parkedRowsQuery, "poison:parked:1:1 a2:parked:0:0")
	if got := b.received(); got != "b1" {
		t.Errorf("received %s, want b1 alone", got)
	}
	b.eventually(parkedRowsQuery, "poison:dead:2:2")
	b.event("a", "a3")
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "3")
	if got := b.received(); got != "b1 a2 a3" {
		t.Errorf("received %s", got)
	}
	r.stop()
}

// A dead letter that blocks holds its aggregate until a person acts, over restarts as well.
func TestDeadLetterBlocks(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.cfg.Delivery.DeadBlocks = true
	b.cfg.Delivery.MaxRetries = 0
	var mended atomic.Bool
	b.answerByType(func(eventType string) error {
		if eventType == "poison" && !mended.Load() {
			return fmt.Errorf("too large: %w", sinks.ErrPermanent)
		}
		return nil
	})
	r := b.run()
	b.event("a", "poison")
	b.event("a", "a2")
	b.event("b", "b1")
	b.eventually(parkedRowsQuery, "poison:dead:1:1 a2:parked:0:0")
	r.stop()
	r = b.run()
	b.event("a", "a3")
	b.eventually(parkedRowsQuery, "poison:dead:1:1 a2:parked:0:0 a3:parked:0:0")
	mended.Store(true)
	b.exec("update outbox_parked set status = 'parked', attempts = 0, tries = 0, next_attempt_at = now() where status = 'dead'")
	b.exec("select pg_notify('outbox_changed', 'public:' || (select id from outbox_processors))")
	b.eventually("select count(*) from outbox_parked", "0")
	if got := b.received(); got != "b1 poison a2 a3" {
		t.Errorf("received %s", got)
	}
	r.stop()
}

// A paused sink gets nothing. Its events wait in the table.
func TestPaused(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	r := b.run()
	b.event("a", "one")
	b.eventually(logQuery, "one:delivered")
	setActive := func(isActive string) {
		b.exec("update outbox_processors set is_active = $1::text::boolean", isActive)
		b.exec("select pg_notify('outbox_changed', 'public:' || (select id from outbox_processors))")
	}
	setActive("false")
	b.waitFor("paused", func() bool { return r.health.Report().Components["sink:s"].Detail != "" })
	b.event("a", "two")
	b.eventually(parkedRowsQuery, "two:parked:0:0")
	r.stop()
	r = b.run()
	b.event("a", "three")
	b.eventually(parkedRowsQuery, "two:parked:0:0 three:parked:0:0")
	setActive("true")
	b.eventually("select count(*) from outbox_parked", "0")
	r.stop()
	if got := b.received(); got != "one two three" {
		t.Errorf("received %s", got)
	}
}

// If messages of five aggregates die and none is accepted in between, the receiver is taken for broken. The rest waits until it is mended.
func TestBrokenReceiver(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.cfg.Delivery.BatchSize = 1
	var mended atomic.Bool
	b.answerByType(func(string) error {
		if !mended.Load() {
			return fmt.Errorf("400: %w", sinks.ErrPermanent)
		}
		return nil
	})
	b.cfg.Delivery.Lanes = 1
	r := b.run()
	for i := range 30 {
		b.event(fmt.Sprint("a", i), fmt.Sprint("e", i))
	}
	b.eventually("select count(*) filter (where status = 'dead') || ' ' || count(*) filter (where status = 'parked') from outbox_parked", "5 25")
	mended.Store(true)
	b.eventually("select count(*) from outbox_parked where status = 'parked'", "0")
	b.eventually("select count(*) from outbox_parked where status = 'dead'", "5")
	r.stop()
}

// If a sink with parked events is missing from the configuration, the start is refused until the configuration says what is to become of them.
func TestOrphans(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	away := b.takeSinkAway()
	r := b.run()
	b.event("a", "one")
	b.eventually("select count(*) from outbox_parked", "1")
	r.stop()
	b.cfg.Sinks[0].Name = "t"
	b.run().wantExit(exitcode.Config, "renamed_from")
	b.cfg.Sinks[0].RenamedFrom = "s" // as the refusal advises
	r = b.run()
	b.event("a", "two")
	b.eventually("select count(*) from outbox_parked", "2")
	r.stop()
	b.cfg.Sinks[0].Name, b.cfg.Sinks[0].RenamedFrom = "u", ""
	b.cfg.Abandoned = []string{"t"}
	away.Store(false)
	r = b.run()
	b.event("a", "three")
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "1")
	r.stop()
	if got := b.received(); got != "three" {
		t.Errorf("received %s", got)
	}
}

// If the breaker opens at the sink's very first failure, /readyz says why.
func TestBreakerOpenSaysWhy(t *testing.T) {
	t.Parallel()
	health := &monitoring.Health{}
	s := newSinkState(observedSink{name: "s", health: health, logger: slog.New(slog.DiscardHandler)})
	s.begin(1)
	s.breakerIs(breakerOpen, time.Time{})
	s.answered(answer{cause: fmt.Errorf("400: %w", sinks.ErrPermanent)})
	if why := health.Report().Components["sink:s"].Detail; !strings.Contains(why, "400") {
		t.Errorf("it says %q", why)
	}
}

// A parked event that a person has declared dead is not delivered, even if a lane has read its row before.
func TestKilledWhileCatchingUp(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.cfg.Delivery.Lanes, b.cfg.Delivery.BatchSize = 1, 1
	var up atomic.Bool
	b.answerByType(func(string) error {
		if !up.Load() {
			return sinks.ErrUnavailable
		}
		time.Sleep(50 * time.Millisecond) // a slow sink
		return nil
	})
	r := b.run()
	for i := range 60 {
		b.event(fmt.Sprint("a", i), "e")
	}
	b.eventually("select count(*) from outbox_parked", "60")
	up.Store(true)
	b.eventually("select count(*) < 55 from outbox_parked", "true")
	b.exec("update outbox_parked set status = 'dead', next_attempt_at = null")
	b.exec("select pg_notify('outbox_changed', 'public:' || (select id from outbox_processors))")
	killed := len(strings.Fields(b.received()))
	b.event("b", "last")
	b.eventually("select count(*) from outbox_parked where status = 'parked'", "0")
	r.stop()
	if n := len(strings.Fields(b.received())) - killed; n > 5 {
		t.Errorf("%d were delivered after they were declared dead", n)
	}
}

// When a person has locked the ledger, lanes wait to hand over what they park. That does not keep the process from ending.
func TestStopWhileTheLedgerIsLocked(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.cfg.Delivery.DrainTimeout = 100 * time.Millisecond
	b.answerByType(func(string) error { return sinks.ErrUnavailable })
	r := b.run()
	for i := range 20 {
		b.event(fmt.Sprint("a", i), "parked")
	}
	b.eventually("select count(*) from outbox_parked", "20")
	b.waitFor("open", func() bool { return strings.Contains(r.health.Report().Components["sink:s"].Detail, "breaker open") })
	b.exec("begin")
	b.exec("lock table outbox_parked in share mode")
	other, err := pgx.Connect(t.Context(), b.cfg.Source.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	for i := range 300 { // more than the recorder's channel holds, each handed over alone
		_, err := other.Exec(t.Context(), "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', $1, 'late', '{}')", fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	r.cancel()
	select {
	case err := <-r.ended:
		// The reason is the lock, not a Deliver call that was running.
		if err == nil || !strings.Contains(err.Error(), "lock timeout") || strings.Contains(err.Error(), "on the wire") {
			t.Errorf("ended with %v, want the ledger's lock", err)
		}
	case <-time.After(recordWait + 10*time.Second):
		t.Error("goes on for as long as the lock")
	}
	b.exec("rollback")
}

// When the sink answers, what waits only for it is tried at once, although the table says that it is due in an hour.
func TestDueWhenTheSinkAnswers(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.cfg.Breaker = BreakerConfig{ResetTimeout: time.Hour}
	b.cfg.Delivery.Retry = Retry{Initial: time.Hour, Max: time.Hour}
	away := b.takeSinkAway()
	r := b.run()
	for _, aggregate := range []string{"a", "b", "c", "d"} {
		b.event(aggregate, aggregate+"1")
		b.event(aggregate, aggregate+"2")
	}
	b.eventually("select count(*) from outbox_parked", "8")
	b.eventually("select count(*) from outbox_parked where next_attempt_at > now() + interval '20 minutes'", "4")
	away.Store(false)
	b.event("z", "z1")
	b.eventually("select count(*) from outbox_parked", "0")
	r.stop()
}

// waitFor waits until a condition holds.
func (b *connectorBench) waitFor(what string, is func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(benchPatience); !is(); {
		if time.Now().After(deadline) {
			b.t.Fatalf("not %s for %s", what, benchPatience)
		}
		time.Sleep(10 * time.Millisecond) // between two checks
	}
}
