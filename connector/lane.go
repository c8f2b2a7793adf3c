package connector

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// maxUnrecorded is how many batches of a lane may be delivered and not yet recorded: what a crash can repeat.
	maxUnrecorded = 8
	// maxCatchingRows is how many rows of a lane that catches up may be delivered and not yet recorded. The recorder takes outcomes
	// in the order in which they come, and has thousands a second to do with these: the other sinks', and with them the slot,
	// would wait behind a long queue.
	maxCatchingRows = 1000
	// deliverPace is the least time between two Deliver calls while the stream is fast, unless a whole batch waits:
	// a thousand small requests cost more than everything else.
	deliverPace = 3 * time.Millisecond
	// parkPortion is how many parked deliveries are given to the recorder together at most.
	parkPortion = 1000
	// lastAnswer is how long a Deliver may take to end with its context.
	lastAnswer = time.Second
)

// sharedSink is a sink as its lanes share it.
type sharedSink struct {
	sink     sinks.Sink
	name     string
	id       int32 // of its processor
	origin   string
	oneTry   bool // what is not accepted at once is discarded
	delivery DeliveryConfig
	breaker  *breaker
	paused   *atomic.Bool // by a person
	state    *sinkState
	metrics  monitoring.SinkMetrics
	fast     func() bool // the stream is
	large    largeTurn
	logger   *slog.Logger
}

// inPlace: what is not accepted stays in the lane's hands.
func (t *sharedSink) inPlace() bool { return t.oneTry || t.delivery.parksNothing() }

// lane owns the order of a share of a sink's aggregates. It is an actor: it never sleeps and never blocks on the sink;
// Deliver, and a read of its rows in outbox_parked, run beside it, one at a time.
//
// It is live, and delivers what arrives: live.go. Or it catches up, and delivers what was parked: catchup.go. What becomes of
// a Deliver is in finish.go. Order rests on two rules: what is settled of an aggregate is always a prefix of it; and what
// was not accepted holds its aggregate until the table was read again.
type lane struct {
	*sharedSink
	number int
	rowSource
	maxHeld int // aggregates in memory

	in       chan []*delivery           // from the reader, which closes it
	out      chan<- checkpoint.Outcomes // to the recorder
	recorded chan uint64                // from the recorder: everything up to this Seq is committed
	asked    chan struct{}              // somebody has something to say: asks
	asks     atomic.Uint32

	pending []*delivery     // arrived, in order
	inHand  []*delivery     // in place: delivered before and not accepted; goes first
	retryAt time.Time       // when again may be tried
	away    bool            // in place: the last Deliver reached nobody; one message asks whether that has changed
	running *runningDeliver // the running Deliver
	calls   chan []sinks.Message
	done    chan result
	started time.Time
	batch   []sinks.Message // reused: Deliver does not keep it
	nils    []error

	live      bool
	held      map[int64]struct{} // aggregates of which the last read, or a failure since, left a row: what is behind it waits
	heldUntil time.Time          // when the first of these is due
	catchUpAt time.Time          // live: not before
	catching

	givenSeq     uint64               // Seq of the last outcomes
	committedSeq uint64               // Seq of the last that are committed
	deliveredSeq uint64               // Seq of the last that a Deliver had
	diedSeq      uint64               // Seq of the last in which something died in place, or was discarded
	unrecorded   []unrecorded         // by Deliver calls, and not committed
	parks        []checkpoint.Outcome // to be given at the end of the step

	closing  bool
	next     time.Time // when to look again
	timer    *time.Timer
	noAnswer error // why a Deliver ends that takes too long

	// What others see.
	idle      atomic.Bool   // it has nothing to do
	heldShown int           // of held, in the metric
	oldest    atomic.Uint64 // the first entry that waits for this sink, +1; 0: none
}

// runningDeliver is a Deliver that runs.
type runningDeliver struct {
	messages []*delivery
	claim    claim
}

// unrecorded is what the recorder was given of a Deliver.
type unrecorded struct {
	seq  uint64
	rows int
}

type result struct {
	errs               []error
	started, completed time.Time
}

func newLane(t *sharedSink, number int, rows rowSource, out chan<- checkpoint.Outcomes) *lane {
	l := &lane{sharedSink: t, number: number, rowSource: rows, maxHeld: maxHeld, out: out}
	// The reader hands over up to handOver deliveries a time; two more slots let it go on while the lane is at work.
	l.in = make(chan []*delivery, 2)
	l.recorded = make(chan uint64, 1)
	l.asked = make(chan struct{}, 1)
	l.calls = make(chan []sinks.Message, 1)
	l.done = make(chan result, 1) // Deliver's goroutine never waits for the lane
	l.read = make(chan readResult, 1)
	l.held = map[int64]struct{}{}
	l.noAnswer = fmt.Errorf("no answer within delivery.timeout %s", l.delivery.Timeout)
	// Every session starts with the table, arrivals waiting.
	l.waiting, l.from, l.floor = true, checkpoint.MinPosition, newFloor()
	return l
}

// What a lane can be asked for.
const (
	askPark   uint32 = 1 << iota // from now on arrivals are parked: the breaker is open, or the sink too slow
	askReread                    // somebody has changed rows
)

// ask wakes the lane. Safe for all goroutines.
func (l *lane) ask(what uint32) {
	l.asks.Or(what)
	select {
	case l.asked <- struct{}{}:
	default:
	}
}

// run ends when in is closed and nothing is on the wire any more, or with work. What was not delivered then is
// delivered by the next session: the slot has not moved past it, or it is parked. deliver is the context of Deliver calls.
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
	defer func() { // the sink is closed next
		close(l.calls)
		endDelivering()
		select {
		case <-ended:
		case <-time.After(lastAnswer): // it does not keep to its contract
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

// step does what can be done now.
func (l *lane) step(now time.Time) {
	asks := l.asks.Swap(0)
	l.tableChanged = l.tableChanged || asks&askReread != 0 || !now.Before(l.rereadAt)
	if !now.Before(l.rereadAt) {
		l.rereadAt = now.Add(rereadEvery)
	}
	l.wakeAt(l.rereadAt)
	if asks&askReread != 0 {
		l.rows = nil                        // a person may have taken them away,
		l.floor.at = checkpoint.MinPosition // or have written others
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

// hangs: arrivals have waited for park_after behind a Deliver that is not answered. They must not wait until it is, with the slot.
func (l *lane) hangs(now time.Time) bool {
	if l.delivery.parksNothing() || l.running == nil || len(l.pending) == 0 || !l.live && !l.waiting {
		return false
	}
	at := l.started.Add(l.delivery.ParkAfter)
	l.wakeAt(at)
	return !now.Before(at)
}

func (l *lane) wakeAt(t time.Time) {
	if t.Before(l.next) {
		l.next = t
	}
}

// mayDeliver says whether a Deliver may start, as far as the lane itself knows.
func (l *lane) mayDeliver() bool {
	if l.committedSeq < l.diedSeq { // else a crash would forget it, and try the one behind what followed it
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

// permitted asks the breaker as well.
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

// start starts a Deliver of this batch, which the breaker permits by c.
func (l *lane) start(now time.Time, batch []*delivery, c claim) {
	l.running = &runningDeliver{batch, c}
	l.batch = l.batch[:0]
	for _, d := range batch {
		d.Attempt, d.Origin, d.New = d.tries+1, l.origin, d.isNew()
		l.batch = append(l.batch, d.Message)
	}
	l.started = now
	l.calls <- l.batch
}

// deliver makes the Deliver calls, one by one, until the lane has ended. One goroutine for all of them: a new one would have to
// grow its stack each time.
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

// park keeps a delivery in outbox_parked, untried.
func (l *lane) park(d *delivery) {
	l.parks = append(l.parks, d.outcome(l.id, checkpoint.Parked))
	l.floor.parked(d.position())
}

// giveParks gives what was parked in portions: a window that is parked at once is a lot of memory.
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

func (l *lane) onRecorded(seq uint64) {
	l.committedSeq = seq
	l.floor.recorded(seq)
	for len(l.unrecorded) > 0 && l.unrecorded[0].seq <= seq {
		l.unrecorded = l.unrecorded[1:]
	}
}

// show tells others how the lane stands.
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
	if n := len(l.held); n != l.heldShown {
		l.metrics.Held.Add(float64(n - l.heldShown))
		l.heldShown = n
	}
	l.idle.Store(l.running == nil && len(l.pending) == 0 && len(l.inHand) == 0 && len(l.rows) == 0)
}
