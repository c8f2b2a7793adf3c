package connector

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// maxUnrecorded is how many batches of a lane may be delivered and not yet recorded. A crash can repeat so many.
	maxUnrecorded = 8
	// maxCatchingRows is how many rows of a lane that catches up may be delivered and not yet recorded. The recorder takes outcomes
	// in the order in which they come, and can record only thousands of parked rows a second. The outcomes of other sinks, and with
	// them the slot, would wait behind a long queue of these.
	maxCatchingRows = 1000
	// deliverPace is the least time between two Deliver calls while the stream is fast, unless a whole batch waits:
	// a thousand small requests cost more than everything else.
	deliverPace = 3 * time.Millisecond
	// parkPortion is the most parked deliveries that are given to the recorder together.
	parkPortion = 1000
	// lastAnswer is how long a Deliver may take to return after its context has ended.
	lastAnswer = time.Second
)

// sharedSink is what the lanes of a sink share.
type sharedSink struct {
	sink     sinks.Sink
	name     string
	id       int32  // of its processor
	origin   string // sinks.Message's
	oneTry   bool   // what is not accepted at once is discarded
	delivery DeliveryConfig
	breaker  *breaker
	budget   *budget
	paused   *atomic.Bool // a person has paused the sink
	state    *sinkState
	duration prometheus.Observer // from the commit of an event to its acceptance
	fast     func() bool         // whether the stream is fast
	large    largeTurn
	logger   *slog.Logger
}

// inPlace reports whether messages that were not accepted stay in the lane's hands. Else they are parked.
func (s *sharedSink) inPlace() bool { return s.oneTry || s.delivery.parksNothing() }

// lane delivers the events of a share of a sink's aggregates, and keeps them in order. It is an actor: it never sleeps and never waits for
// the sink. At most one Deliver, and at most one read of its rows in outbox_parked, run beside it.
//
// A lane is live and delivers what arrives (live.go), or it catches up and delivers what was parked (catchup.go). finish.go decides what
// becomes of the messages of a Deliver. Order rests on two rules: what is settled of an aggregate is always a prefix of it; and a message
// that was not accepted holds its aggregate until the table was read again.
type lane struct {
	*sharedSink
	number int
	rowSource
	maxHeld int // if it holds more aggregates, it does not go live

	in       chan []*delivery           // from the reader, which closes it
	out      chan<- checkpoint.Outcomes // to the recorder
	recorded chan uint64                // from the recorder: everything up to this Seq is committed
	asked    chan struct{}              // wakes the lane: asks has changed
	asks     atomic.Uint32              // what others ask of the lane: askPark, askReread

	pending []*delivery          // what has arrived, in order
	inHand  []*delivery          // in place: delivered before and not accepted; these go first
	retryAt time.Time            // when inHand may be tried again
	away    bool                 // in place: the last Deliver reached nobody, so that one message asks whether that has changed
	running *runningDeliver      // nil: no Deliver runs
	calls   chan []sinks.Message // to the goroutine that calls Deliver
	done    chan result          // from it
	started time.Time            // when the last Deliver began
	batch   []sinks.Message      // the memory of a batch, used again: Deliver does not keep it
	nils    []error

	live      bool               // else it catches up
	held      map[int64]struct{} // aggregates of which the last read, or a failure since, has left a row; what stands behind it waits
	heldUntil time.Time          // when the first of these rows is due
	catchUpAt time.Time          // a live lane does not catch up before this
	catching

	givenSeq     uint64               // Seq of the last outcomes that the recorder was given
	committedSeq uint64               // Seq of the last outcomes that are committed
	deliveredSeq uint64               // Seq of the last outcomes of a Deliver
	diedSeq      uint64               // Seq of the last outcomes in which something died in place, or was discarded
	unrecorded   []unrecorded         // outcomes of Deliver calls that are not committed
	parks        []checkpoint.Outcome // what was parked or discarded in this step, to be given at its end

	closing  bool      // in is closed
	next     time.Time // when the lane has to do something, if nothing happens before
	timer    *time.Timer
	noAnswer error // why a Deliver that takes too long is ended

	// What others see.
	idle   atomic.Bool   // the lane has nothing to do
	shown  laneView      // what state has of the lane
	oldest atomic.Uint64 // the tracker's number of the first event that waits for this lane, plus one; 0: there is none
}

// runningDeliver is what a Deliver that runs was given.
type runningDeliver struct {
	messages []*delivery
	probe    bool // it asks whether the destination is back
}

// unrecorded are the outcomes of one Deliver that the recorder has not committed yet.
type unrecorded struct {
	seq  uint64
	rows int
}

// result is what a Deliver has answered.
type result struct {
	errs               []error
	started, completed time.Time
}

func newLane(s *sharedSink, number int, rows rowSource, out chan<- checkpoint.Outcomes) *lane {
	l := &lane{sharedSink: s, number: number, rowSource: rows, maxHeld: maxHeld, out: out}
	// The reader hands over up to handOver deliveries at a time. Two slots let it go on while the lane is at work.
	l.in = make(chan []*delivery, 2)
	l.recorded = make(chan uint64, 1)
	l.asked = make(chan struct{}, 1)
	l.calls = make(chan []sinks.Message, 1)
	l.done = make(chan result, 1) // Deliver's goroutine never waits for the lane
	l.read = make(chan readResult, 1)
	l.held = map[int64]struct{}{}
	l.noAnswer = fmt.Errorf("no answer within delivery.timeout %s", l.delivery.Timeout)
	// Every session begins with a read of the table, while arrivals wait.
	l.waiting, l.from, l.floor = true, checkpoint.MinPosition, newFloor()
	return l
}

// What a lane can be asked for.
const (
	askPark   uint32 = 1 << iota // park arrivals from now on: the breaker is open, or the sink is too slow
	askReread                    // read the table again: somebody has changed rows
)

// ask asks something of the lane and wakes it. With 0 it only wakes it. Safe for all goroutines.
func (l *lane) ask(what uint32) {
	l.asks.Or(what)
	select {
	case l.asked <- struct{}{}:
	default:
	}
}

// run ends when in is closed and no Deliver runs any more, or when work ends. The next session delivers what was not delivered then: the
// slot has not moved past it, or it is parked. deliver is the context of Deliver calls.
func (l *lane) run(work, deliver context.Context) error {
	reading, endRead := context.WithCancel(work)
	var reads sync.WaitGroup
	defer reads.Wait()
	defer endRead()
	l.startRead = func(q ledger.ParkedQuery) {
		reads.Go(func() { l.read <- l.readParked(reading, q) })
	}
	delivering, endDelivering := context.WithCancel(deliver)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.deliver(delivering)
	}()
	defer func() { // after this the sink is closed
		close(l.calls)
		endDelivering()
		select {
		case <-ended:
		case <-time.After(lastAnswer): // the sink does not keep to its contract
		}
	}()
	l.timer = time.NewTimer(time.Hour)
	defer l.timer.Stop()
	l.rereadAt = time.Now().Add(rereadEvery)
	in := l.in
	for {
		now := time.Now()
		l.next = now.Add(time.Hour)
		if !l.closing && deliver.Err() == nil {
			l.step(now)
		}
		if err := l.giveParks(work); err != nil {
			return err
		}
		if l.running == nil && !l.reading && len(l.rows) == 0 {
			l.large.end(l)
		}
		if l.closing && l.running == nil {
			return nil
		}
		l.show()
		l.timer.Reset(max(0, l.next.Sub(now)))
		select {
		case batch, ok := <-in:
			if !ok {
				in, l.closing = nil, true
				continue
			}
			l.pending = append(l.pending, batch...)
		case res := <-l.done:
			if err := l.finish(work, deliver, res); err != nil {
				return err
			}
		case res := <-l.read:
			l.onRead(res, time.Now())
		case seq := <-l.recorded:
			l.onRecorded(seq)
		case <-l.asked:
		case <-l.timer.C:
		case <-work.Done():
			return context.Cause(work)
		}
	}
}

// step does what the lane can do now.
func (l *lane) step(now time.Time) {
	asks := l.asks.Swap(0)
	l.tableChanged = l.tableChanged || asks&askReread != 0 || !now.Before(l.rereadAt)
	if !now.Before(l.rereadAt) {
		l.rereadAt = now.Add(rereadEvery)
	}
	l.wakeAt(l.rereadAt)
	if asks&askReread != 0 {
		l.rows = nil                        // a person may have deleted some of these rows,
		l.floor.at = checkpoint.MinPosition // or made others untried
	}
	if asks&askPark != 0 || l.hangs(now) {
		l.parkArrivals()
	}
	if l.live && l.shouldCatchUp(now) {
		l.catchUp()
	}
	if l.live {
		l.stepLive(now)
	} else {
		l.stepCatchingUp(now)
	}
}

// hangs reports whether arrivals have waited for park_after behind a Deliver that is not answered. They must not wait until it is
// answered, because the slot waits with them.
func (l *lane) hangs(now time.Time) bool {
	if l.delivery.parksNothing() || l.running == nil || len(l.pending) == 0 || !l.live && !l.waiting {
		return false
	}
	at := l.started.Add(l.delivery.ParkAfter)
	l.wakeAt(at)
	return !now.Before(at)
}

// wakeAt makes the lane do its next step at t, if nothing makes it do one before.
func (l *lane) wakeAt(t time.Time) {
	if t.Before(l.next) {
		l.next = t
	}
}

// mayDeliver reports whether a Deliver may start, as far as the lane itself knows.
func (l *lane) mayDeliver() bool {
	// What has died in place, or was discarded, must be recorded first. Otherwise a crash would forget that, and the next session would
	// deliver it behind messages that followed it.
	if l.committedSeq < l.diedSeq {
		l.hurry(l.diedSeq)
		return false
	}
	return l.running == nil && len(l.unrecorded) < maxUnrecorded && !l.paused.Load() && (l.live || l.unrecordedRows() < maxCatchingRows)
}

func (l *lane) unrecordedRows() int {
	n := 0
	for _, u := range l.unrecorded {
		n += u.rows
	}
	return n
}

// permitted asks the breaker whether a Deliver may start. If it may not, the lane discards arrivals of a sink that is tried once.
func (l *lane) permitted(now time.Time) permission {
	p := l.breaker.may(l.number, now)
	switch {
	case p.ok:
	case l.oneTry:
		l.parkAll(l.inHand)
		l.parkAll(l.pending)
		l.inHand, l.pending = nil, nil
	case p.wait > 0:
		l.wakeAt(now.Add(p.wait))
	}
	return p
}

// start starts a Deliver of this batch, which the breaker knows of.
func (l *lane) start(now time.Time, batch []*delivery, p permission) {
	l.running = &runningDeliver{batch, p.probe}
	l.batch = l.batch[:0]
	for _, d := range batch {
		d.Attempt, d.Origin, d.New = d.tries+1, l.origin, d.isNew()
		l.batch = append(l.batch, d.Message)
	}
	l.started = now
	l.calls <- l.batch
}

// deliver makes the Deliver calls, one after the other, until the lane has ended. It is one goroutine for all calls, because a new one
// would have to grow its stack each time.
func (l *lane) deliver(ctx context.Context) {
	for batch := range l.calls {
		ctx, cancel := context.WithTimeoutCause(ctx, l.delivery.Timeout, l.noAnswer)
		res := result{started: time.Now()}
		res.errs = l.sink.Deliver(ctx, batch)
		res.completed = time.Now()
		cancel()
		l.done <- res
	}
}

// park puts a delivery into outbox_parked, untried.
func (l *lane) park(d *delivery) {
	l.parks = append(l.parks, d.outcome(l.id, checkpoint.Parked))
	l.floor.parked(d.position())
}

// giveParks gives the recorder what this step has parked, in portions: if a whole window is parked at once, that is a lot of memory.
func (l *lane) giveParks(work context.Context) error {
	for portion := range slices.Chunk(l.parks, parkPortion) {
		if err := l.give(work, checkpoint.Outcomes{Rows: portion}); err != nil {
			return err
		}
	}
	if l.oneTry && len(l.parks) > 0 {
		l.diedSeq = l.givenSeq
	}
	l.parks = nil
	return nil
}

// give hands outcomes, of which there is at least one, to the recorder. From then on they are the recorder's.
func (l *lane) give(work context.Context, o checkpoint.Outcomes) error {
	l.givenSeq++
	l.floor.gave(l.givenSeq)
	o.Seq, o.Recorded = l.givenSeq, l.recorded
	select {
	case l.out <- o:
		return nil
	case <-work.Done():
		return context.Cause(work)
	}
}

// onRecorded notes that everything up to seq is committed.
func (l *lane) onRecorded(seq uint64) {
	l.committedSeq = seq
	l.floor.recorded(seq)
	for len(l.unrecorded) > 0 && l.unrecorded[0].seq <= seq {
		l.unrecorded = l.unrecorded[1:]
	}
}

// show publishes what others see of the lane.
func (l *lane) show() {
	var oldest uint64
	first := func(list []*delivery) {
		if len(list) > 0 && !list[0].row && !list[0].discarded && (oldest == 0 || list[0].entry+1 < oldest) {
			oldest = list[0].entry + 1
		}
	}
	first(l.pending)
	first(l.inHand)
	if l.running != nil {
		first(l.running.messages)
	}
	l.oldest.Store(oldest)
	if view := (laneView{catchingUp: !l.live, held: len(l.held)}); view != l.shown {
		l.state.laneIs(l.number, view)
		l.shown = view
	}
	l.idle.Store(l.running == nil && len(l.pending) == 0 && len(l.inHand) == 0 && len(l.rows) == 0)
}
