package connector

import (
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// What is under way counts as in flight until it is committed, and the oldest event that waits is known, in a lane and in the table. A
// lane works unless something waits in it that the sink does not accept.
func TestWhatWaits(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.cfg.Delivery.Lanes, b.cfg.Delivery.ParkAfter = 2, time.Hour
	b.cfg.Breaker.MaxFailures = 1000
	held, release := b.holdBack("held")
	r := b.run()
	sink := func() *monitoring.SinkStatus { return &r.connector.Status().Sinks[0] }
	b.waitFor("counted", func() bool { s := sink(); return s.KnowsWhatWaits() && s.Working() == 2 })
	if s := sink(); s.InFlight() != 0 || !s.Events.OldestCommittedAt.IsZero() || !s.Events.DeliveredAt.IsZero() {
		t.Errorf("nothing waits: %+v", s)
	}

	before := time.Now()
	b.event(b.onLane(0, 1), "held")
	<-held
	b.event(b.onLane(0, 2), "behind")
	b.waitFor("both are in flight", func() bool { return sink().InFlight() == 2 })
	s := sink()
	if oldest := s.Events.OldestCommittedAt; oldest.Before(before.Add(-time.Second)) || oldest.After(time.Now().Add(time.Second)) {
		t.Errorf("the oldest was committed at %s, begun at %s", oldest, before)
	}
	if s.Lanes[0].InFlight != 2 || s.Lanes[1].InFlight != 0 || s.Working() != 2 {
		t.Errorf("while the sink takes its time: %+v", s.Lanes)
	}
	release()
	b.waitFor("delivered", func() bool { return sink().InFlight() == 0 && sink().Counts.Delivered == 2 })
	if s = sink(); !s.Events.OldestCommittedAt.IsZero() || s.Events.DeliveredAt.Before(before) || !s.Lanes[0].DeliveredAt.Equal(s.Events.DeliveredAt) || !s.Lanes[1].DeliveredAt.IsZero() {
		t.Errorf("all is delivered: %+v", s)
	}
	r.stop()

	away := b.takeSinkAway()
	b.cfg.Delivery.Retry = Retry{Initial: time.Second, Max: time.Second}
	r = b.run()
	b.waitFor("counted", func() bool { return sink().KnowsWhatWaits() && sink().CatchingUp() == 0 })
	b.event(b.onLane(1, 1), "parked")
	b.event(b.onLane(1, 2), "parked later")
	b.waitFor("parked", func() bool { return sink().Parked == 2 })
	parked := time.Now()
	committed := b.query("select event->>'committed_at' from outbox_parked order by commit_lsn limit 1")
	want, err := time.Parse(time.RFC3339Nano, committed)
	if err != nil {
		t.Fatal(err)
	}
	b.waitFor("the oldest event is known", func() bool { return sink().Events.OldestCommittedAt.Equal(want) })
	if took := time.Since(parked); took > 3*time.Second {
		t.Errorf("it took %s until the oldest event was known", took)
	}
	if s = sink(); s.InFlight() != 0 || s.Lanes[0].RefusedAll || !s.Lanes[1].RefusedAll || s.Working() != 1 {
		t.Errorf("what is parked is not in flight, and one lane works: %+v", s)
	}
	away.Store(false)
	b.waitFor("delivered from the table", func() bool { return sink().Parked == 0 && sink().Working() == 2 })
	if s = sink(); !s.Events.OldestCommittedAt.IsZero() || s.State() != monitoring.StateOK {
		t.Errorf("nothing waits any more: %+v", s)
	}
	r.stop()
}
