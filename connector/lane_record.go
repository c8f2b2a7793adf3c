package connector

import (
	"context"
	"slices"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// parkPortion is the most parked deliveries that are given to the recorder together.
const parkPortion = 1000

// recorderSide is a lane's side of the recorder: what the lane has given to it, and how far that is committed. The numbers are those of
// checkpoint.Outcomes.Seq.
type recorderSide struct {
	out        chan<- checkpoint.Outcomes
	recorded   chan uint64          // everything up to this Seq is committed
	parks      []checkpoint.Outcome // what was parked or discarded in this step, to be given at its end
	given      uint64               // the last outcomes that the recorder was given
	committed  uint64               // the last outcomes that are committed
	outcomes   uint64               // the last outcomes of a Deliver
	died       uint64               // the last outcomes in which something died in place, or was discarded
	hurried    uint64               // the highest Seq for which the recorder was told that the lane waits
	unrecorded []unrecorded         // outcomes of Deliver calls that are not committed
	settling   []settling           // how many deliveries are settled by what is not committed
	waited     time.Duration        // until the recorder took something; see lane.worked
}

func (r *recorderSide) unrecordedRows() int {
	n := 0
	for _, u := range r.unrecorded {
		n += u.rows
	}
	return n
}

// settling is how many deliveries are settled when everything up to seq is committed.
type settling struct {
	seq        uint64
	deliveries int64
}

// parkUntried puts a delivery into outbox_parked, untried.
func (l *lane) parkUntried(d *delivery) {
	l.recorder.parks = append(l.recorder.parks, d.outcome(l.id, checkpoint.Parked))
	l.table.floor.parked(d.position())
}

// discard gives up a delivery of a sink that is tried once, because the sink is not asked or not waited for now.
func (l *lane) discard(d *delivery) {
	o := d.outcome(l.id, checkpoint.Discarded)
	o.StartedAt = time.Now()
	o.CompletedAt, o.Error = o.StartedAt, "the sink is away, slow or paused"
	d.discarded = true
	l.recorder.parks = append(l.recorder.parks, o)
	l.state.discarded()
	l.objective.add(o.CompletedAt, nil, 1)
}

// giveParks gives the recorder what this step has parked. It does so in portions, because a whole window may be parked at once, and one
// transaction of that size would take a lot of memory.
func (l *lane) giveParks(work context.Context) error {
	if len(l.recorder.parks) == 0 {
		return nil
	}
	l.state.parked(l.recorder.parks)
	for portion := range slices.Chunk(l.recorder.parks, parkPortion) {
		if err := l.give(work, checkpoint.Outcomes{Rows: portion}); err != nil {
			return err
		}
	}
	if l.policy == discardFailed {
		l.recorder.died = l.recorder.given
	}
	l.recorder.parks = nil
	return nil
}

// give hands outcomes, of which there is at least one, to the recorder. From then on they are the recorder's.
func (l *lane) give(work context.Context, o checkpoint.Outcomes) error {
	r := &l.recorder
	r.given++
	l.table.floor.gave(r.given)
	o.Seq, o.Recorded = r.given, r.recorded
	r.settles(o)
	select {
	case r.out <- o:
		return nil
	default:
		return r.wait(work, o)
	}
}

// wait gives outcomes to a recorder that has a lot to do already.
func (r *recorderSide) wait(work context.Context, o checkpoint.Outcomes) error {
	began := time.Now()
	defer func() { r.waited += time.Since(began) }()
	select {
	case r.out <- o:
		return nil
	case <-work.Done():
		return context.Cause(work)
	}
}

// settles notes how many deliveries are settled when these outcomes are committed.
func (r *recorderSide) settles(o checkpoint.Outcomes) {
	s := settling{seq: o.Seq}
	for i := range o.Rows {
		if o.Rows[i].Settles {
			s.deliveries++
		}
	}
	if s.deliveries > 0 {
		r.settling = append(r.settling, s)
	}
}

// onRecorded notes that everything up to seq is committed.
func (l *lane) onRecorded(seq uint64) {
	r := &l.recorder
	r.committed = seq
	l.table.floor.recorded(seq)
	for len(r.unrecorded) > 0 && r.unrecorded[0].seq <= seq {
		r.unrecorded = r.unrecorded[1:]
	}
	for len(r.settling) > 0 && r.settling[0].seq <= seq {
		l.shown.inFlight.Add(-r.settling[0].deliveries)
		r.settling = r.settling[1:]
	}
}

// hurry tells the recorder, once for each seq, that this lane waits until what it has given is committed.
func (l *lane) hurry(seq uint64) {
	r := &l.recorder
	if r.hurried >= seq {
		return
	}
	r.hurried = seq
	select {
	case r.out <- checkpoint.Outcomes{Urgent: true}:
	default: // the channel is full, so the recorder has work and waits for nothing
	}
}
