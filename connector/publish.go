package connector

import (
	"context"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// publishEvery is the least time between two states of a sink that are written, and between two tries.
	publishEvery = time.Second
	// publishCause is the least time between two states that differ in their cause only: each failure may have another one.
	publishCause = 10 * time.Second
)

// publisher writes into the ledger how the sinks of a session do, for those who ask what parked rows wait for. It writes only what has
// changed, so that an idle system writes nothing. A session that begins has nothing to write: what an earlier one wrote has another epoch.
type publisher struct {
	epoch int32
	sinks map[int32]*sinkState
	write func(ctx context.Context, processor int32, st ledger.SinkState) error
	tell  func(err error) // how each try went
	wake  <-chan struct{}

	written map[int32]publishedState
}

// publishedState is what the ledger has of a sink.
type publishedState struct {
	ledger.SinkState
	at time.Time
}

// publish runs the session's publisher until ctx ends.
func (s *session) publish(ctx context.Context) {
	goes := dutyReport{c: s.c, duty: "sink states"}
	p := &publisher{
		epoch: s.reader.start.Epoch, sinks: map[int32]*sinkState{}, write: s.c.db.writeSinkState, wake: s.c.published,
		written: map[int32]publishedState{}, tell: goes.report,
	}
	for id, lanes := range s.bySink {
		p.sinks[id] = lanes[0].state
	}
	p.run(ctx)
}

func (p *publisher) run(ctx context.Context) {
	for {
		timer := time.NewTimer(longestSleep)
		next, err := p.writeAll(ctx, time.Now())
		if ctx.Err() != nil {
			timer.Stop()
			return
		}
		p.tell(err)
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-p.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// writeAll writes what has changed, and returns when there is more to write, or the zero time.
func (p *publisher) writeAll(ctx context.Context, now time.Time) (next time.Time, err error) {
	for id, state := range p.sinks {
		st := p.stateOf(state.status())
		due, ok := p.dueAt(id, st)
		if !ok {
			continue
		}
		if due.After(now) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			continue
		}
		writing, cancel := context.WithTimeout(ctx, dutyTimeout)
		werr := p.write(writing, id, st)
		cancel()
		if werr != nil {
			return now.Add(publishEvery), werr
		}
		p.written[id] = publishedState{st, time.Now()}
	}
	return next, nil
}

// stateOf returns what the ledger has to have of a sink.
func (p *publisher) stateOf(st monitoring.SinkStatus) ledger.SinkState {
	condition, since := st.Condition()
	s := ledger.SinkState{Condition: string(condition), Since: since, Epoch: p.epoch}
	if condition != monitoring.ConditionOK && condition != monitoring.ConditionPaused {
		s.Cause = st.Cause
	}
	if condition == monitoring.ConditionUnreachable {
		s.Cause = st.Check.Unreachable
	}
	if condition == monitoring.ConditionAway {
		s.AsksAt = st.AsksAt
	}
	if condition == monitoring.ConditionSuspect {
		s.Rate = suspectRate
	}
	return s
}

// dueAt returns when this state may be written. It reports false if the ledger says the same.
func (p *publisher) dueAt(id int32, st ledger.SinkState) (time.Time, bool) {
	was, known := p.written[id]
	switch {
	case !known:
		return time.Time{}, st.Condition != string(monitoring.ConditionOK)
	case st.Condition != was.Condition, !st.Since.Equal(was.Since), !st.AsksAt.Equal(was.AsksAt):
		return was.at.Add(publishEvery), true
	case st.Cause != was.Cause:
		return was.at.Add(publishCause), true
	}
	return time.Time{}, false
}
