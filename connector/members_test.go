package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// fakeComposite is a composite whose answers the test gives.
type fakeComposite func(batch []sinks.Message) (errs []error, members []string)

func (f fakeComposite) DeliverBy(_ context.Context, batch []sinks.Message) ([]error, []string) {
	return f(batch)
}

func (f fakeComposite) Deliver(context.Context, []sinks.Message) []error {
	panic("a lane asks a composite by DeliverBy")
}

func (f fakeComposite) Close() error { return nil }

// The outcome of a message that was accepted names the member that has accepted it.
func TestLaneNamesTheMember(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, nil)
		refused := false
		b.sink = fakeComposite(func(batch []sinks.Message) ([]error, []string) {
			members := make([]string, len(batch))
			for i := range batch {
				members[i] = "kafka"
			}
			if refused {
				members[0] = "redis"
				return nil, members
			}
			refused = true
			members[0] = ""
			return fail(batch, map[string]error{"a1": errRefused}), members
		})
		b.run()
		b.arrive("a1", "b1")
		time.Sleep(time.Minute)
		b.stop()
		got := ""
		for _, r := range b.rows {
			got += fmt.Sprintf("%s:%s by %q ", r.EventID, r.Status, r.Member)
		}
		check(t, "rows", got, `a1:failed by "" b1:delivered by "kafka" a1:delivered by "redis" `)
	})
}

// A composite that has not named a member for each message does not keep to its contract.
func TestLaneCountsMembers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newLaneBench(t, nil)
		b.sink = fakeComposite(func([]sinks.Message) ([]error, []string) { return nil, []string{"kafka"} })
		b.run()
		b.arrive("a1", "b1")
		if err := <-b.stopped; err == nil {
			t.Error("one member for two messages was taken")
		}
		close(b.outcomes)
		b.end()
		synctest.Wait()
	})
}

// If one member of a composite gave no answer and the next one refused the message, the message is not new any more.
func TestLaneRefusedAndUncertain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var news []bool
		refusals := []error{errRefused, sinks.Uncertain(errRefused), nil}
		b := newLaneBench(t, nil)
		b.sink = fakeSink(func(_ context.Context, batch []sinks.Message) []error {
			news = append(news, batch[0].New)
			if err := refusals[len(news)-1]; err != nil {
				return []error{err}
			}
			return nil
		})
		b.run()
		b.arrive("a1")
		time.Sleep(time.Minute)
		b.stop()
		check(t, "new", fmt.Sprint(news), "[true true false]")
		if n := len(b.rows); n != 3 || b.rows[2].Status != checkpoint.Delivered {
			t.Errorf("%d rows: %s", n, b.gotRows())
		}
	})
}

// /readyz and Status say which member is away, as of the last answer.
func TestSinkStateNamesMembers(t *testing.T) {
	t.Parallel()
	var health monitoring.Health
	members := []monitoring.MemberStatus{{Name: "kafka"}, {Name: "redis"}}
	s := newSinkState(observedSink{
		name: "s", health: &health, logger: slog.New(slog.DiscardHandler), members: func() []monitoring.MemberStatus { return members },
	})
	s.begin(1)
	for _, test := range []struct {
		kafka, redis bool // away
		answer       answer
		want         string
	}{
		{true, false, answer{counts: monitoring.Counts{Delivered: 1}}, "member kafka is away"},
		{true, true, answer{cause: errors.New("refused"), counts: monitoring.Counts{Delivered: 1}}, "member kafka is away; member redis is away"},
		{false, false, answer{counts: monitoring.Counts{Delivered: 1}}, ""},
	} {
		members[0].Away, members[1].Away = test.kafka, test.redis
		s.answered(test.answer)
		if got := health.Report().Components["sink:s"]; got.Status != monitoring.LevelOK || got.Detail != test.want {
			t.Errorf("/readyz shows %+v, want %q", got, test.want)
		}
		if st := s.status(); len(st.Members) != 2 || st.Members[0].Away != test.kafka {
			t.Errorf("status %+v", st.Members)
		}
	}
}
