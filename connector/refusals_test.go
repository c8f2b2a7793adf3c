package connector

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// refusesAll makes the sink refuse messages, each of which is parked.
func (b *storyBench) refusesAll(from, to int64) {
	for i := from; i < to; i++ {
		b.refused(checkpoint.Position{LSN: 7, Index: i})
		b.answered(answer{counts: monitoring.Counts{Failed: 1}, cause: errors.New("status 500")})
	}
	b.counted(ledger.ParkedCount{RowCounts: ledger.RowCounts{Parked: to}, Oldest: time.Second})
}

func (b *storyBench) acceptsOne() {
	b.topicAccepts("t")
	b.answered(answer{counts: monitoring.Counts{Delivered: 1, Unparked: 1}})
}

// A receiver that answers each message with an error works as little as one that is away, long before its messages die.
func TestSinkThatRefusesEverythingIsDegraded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		want := func(level monitoring.Level, condition monitoring.Condition) {
			t.Helper()
			st := b.status()
			if got, _ := st.Condition(); st.Component().Status != level || got != condition {
				t.Errorf("%s, %+v, want %s and %s", got, st.Component(), condition, level)
			}
			if shown := b.health.Report().Components["sink:s"]; shown.Status != level {
				t.Errorf("/readyz shows %+v, want %s", shown, level)
			}
		}
		for range 9 { // one message that is refused again and again says nothing of the others
			b.refusesAll(0, 1)
		}
		time.Sleep(time.Minute)
		b.want()
		want(monitoring.LevelOK, monitoring.ConditionOK)

		b.refusesAll(1, refusalsInRow)
		want(monitoring.LevelDegraded, monitoring.ConditionRefusing)
		time.Sleep(time.Second)
		b.want(`level=WARN msg="sink refuses every message"|parked=5|status 500`)
		time.Sleep(time.Minute)
		b.want(`level=WARN msg="sink still refuses every message"|parked=5|status 500`)
		b.acceptsOne()
		want(monitoring.LevelOK, monitoring.ConditionOK)
		time.Sleep(time.Minute)
		b.want(`level=INFO msg="sink no longer refuses every message"|lasted=2m`)

		b.refusesAll(0, refusalsInRow)
		time.Sleep(time.Second)
		b.want(`level=WARN msg="sink refuses every message"`)
		b.counted(ledger.ParkedCount{}) // a person has taken the messages away, and nothing waits for the sink
		want(monitoring.LevelOK, monitoring.ConditionOK)
	})
}

// When messages of such a sink die, the log tells of the suspicion alone.
func TestSuspicionTakesThePlaceOfRefusals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		b.refusesAll(0, refusalsInRow)
		time.Sleep(time.Second)
		b.want("sink refuses every message")
		b.suspectIs(true)
		time.Sleep(time.Second)
		b.want("sink is suspect")
		time.Sleep(time.Minute)
		b.want("sink is still suspect")
		b.acceptsOne()
		b.suspectIs(false)
		time.Sleep(time.Hour)
		b.want("sink is no longer suspect")
	})
}

// A destination that is back and refuses what it is given does not accept again.
func TestEndOfAnOutageWithoutAcceptance(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		b.fails()
		time.Sleep(time.Second)
		b.want("sink does not accept")
		b.refusesAll(0, refusalsInRow)
		b.breakerIs(breakerClosed, time.Time{})
		time.Sleep(2 * time.Second)
		b.want(`level=WARN msg="sink refuses every message"`, `level=INFO msg="sink answers again"|delivered=0 parked=5`)
	})
}

// The condition says since when the destination is away, and not since when it is left alone.
func TestAwaySinceTheFirstFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newStoryBench(t)
		began := time.Now()
		b.answered(answer{counts: monitoring.Counts{Failed: 3}, cause: errAway})
		time.Sleep(20 * time.Second)
		b.fails()
		st := b.status()
		if c, since := st.Condition(); c != monitoring.ConditionAway || !since.Equal(began) {
			t.Errorf("%s since %s, want away since %s", c, since, began)
		}
	})
}
