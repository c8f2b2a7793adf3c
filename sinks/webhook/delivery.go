package webhook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// maxDoubts is how many requests in a row may fail in a way that leaves open whether the destination is away. A single one
// may be for a message that crashes the receiver. Such a message must not make the others wait.
const maxDoubts = 3

var (
	errNoTurn = errors.New("the rate left it no turn in time")
	errNoTime = errors.New("too little time was left for an answer")
)

// delivery is one call of Deliver.
//
// Each worker takes an aggregate and sends its messages one after the other. For each it waits until the sink has a free
// slot. If a message is not accepted, the rest of its aggregate is not attempted. If a worker finds the destination away, it
// stops all workers: no request is begun after that, and those under way are waited for. The first message of each aggregate
// that was not begun then fails with ErrUnavailable. If the time ran out, or the receiver has asked for a pause, it fails with
// ErrNotAttempted.
//
// A delivery begins with a share of the connections. Each answer earns it one more connection. So messages that are
// never answered leave connections to the other lanes.
type delivery struct {
	sink  *Sink
	batch sinks.Batch // each aggregate belongs to the worker that has taken it
	heads []int32     // the first message of each aggregate, in the order in which workers take them

	workers sync.WaitGroup
	working atomic.Int32 // how many workers were started

	taken atomic.Int32 // how many aggregates were taken by workers
	took  atomic.Int64 // how many nanoseconds the last answer took
	// stop ends the context under which requests are begun. Only its first call sets the cause.
	stop context.CancelCauseFunc

	mu     sync.Mutex
	doubts doubts
}

// doubts is a row of requests that may have failed because the destination is away.
type doubts struct {
	count   int
	url     string // of the last of them
	several bool   // they went to several URLs
}

func newDelivery(s *Sink, batch []sinks.Message) *delivery {
	d := &delivery{sink: s}
	d.heads = d.batch.Begin(batch).Heads()
	rest := s.known.first(d.heads, batch)
	if s.topics == sinks.SeveralTopics {
		takeTurns(rest, func(head int32) string { return s.path(batch[head].Topic) })
	}
	return d
}

// run delivers. Requests run under ctx. They are begun only while a context that is derived from ctx has not ended.
func (d *delivery) run(ctx context.Context) []error {
	begin, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	d.stop = stop
	for range d.sink.share() {
		d.more(ctx, begin)
	}
	d.workers.Wait()
	return d.batch.Errors()
}

// more starts another worker if there is an aggregate and a connection for it.
func (d *delivery) more(ctx, begin context.Context) {
	if int(d.working.Add(1)) <= min(len(d.heads), d.sink.connections) {
		d.workers.Go(func() { d.work(ctx, begin) })
	}
}

func (d *delivery) work(ctx, begin context.Context) {
	for {
		n := int(d.taken.Add(1)) - 1
		if n >= len(d.heads) {
			return
		}
		head := int(d.heads[n])
		for i := head; i >= 0; i = d.batch.Next(i) {
			m := &d.batch.Messages[i]
			if err := d.try(ctx, begin, m); err != nil {
				d.batch.FailRest(i, err)
				break
			}
			if i == head {
				d.sink.known.add(m.Aggregate())
			}
		}
	}
}

// try waits for a slot, and for the rate limit, and sends one message.
func (d *delivery) try(ctx, begin context.Context, m *sinks.Message) error {
	url := d.sink.path(m.Topic)
	if err := d.mayBegin(begin, url); err != nil {
		return err // before it waits for a slot, which messages may have that are never answered
	}
	var s *slot
	select {
	case s = <-d.sink.slots:
		defer func() { d.sink.slots <- s }()
	case <-begin.Done():
	}
	if err := d.mayBegin(begin, url); err != nil {
		return err
	}
	request, body, err := d.sink.request(ctx, m)
	if err != nil {
		return err
	}
	if d.sink.limiter != nil {
		if d.sink.limiter.Wait(begin) != nil {
			return cmp.Or(d.mayBegin(begin, url), fmt.Errorf("%w: %w", sinks.ErrNotAttempted, errNoTurn))
		}
		if err := d.mayBegin(begin, url); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := d.begin(ctx, url, began); err != nil {
		return err
	}
	s.sign(request, m.UniqueID(), body, began)
	release := setBody(request, body)
	v := d.sink.send(ctx, request, m.Event.Payload)
	release()
	d.learn(ctx, &v, url, began)
	if v.answered {
		d.took.Store(int64(time.Since(began)))
		d.more(ctx, begin)
	}
	return v.err
}

// mayBegin returns an error if a request to this URL would be in vain.
func (d *delivery) mayBegin(begin context.Context, url string) error {
	if err := d.sink.paused(); err != nil { // the receiver may have asked for a pause in an answer to any lane
		return err
	}
	if begin.Err() != nil {
		return cannotBegin(begin)
	}
	// A request that the deadline cuts off may have been accepted, and the message would come twice. So none is begun
	// if the time that is left is shorter than the last answer took.
	if deadline, ok := begin.Deadline(); ok && time.Until(deadline) < time.Duration(d.took.Load()) {
		return fmt.Errorf("%w: %w", sinks.ErrNotAttempted, errNoTime)
	}
	if wait := d.sink.urls.away.Wait(url, time.Now()); wait > 0 {
		return sinks.PutOff(wait)
	}
	return nil
}

func cannotBegin(begin context.Context) error {
	err := context.Cause(begin)
	if errors.Is(err, sinks.ErrUnavailable) {
		return err // of the request that found the destination away
	}
	return fmt.Errorf("%w: not sent in time: %w", sinks.ErrNotAttempted, err)
}

// begin notes that a request begins. It returns an error if another message is asking just now whether this URL is back.
func (d *delivery) begin(ctx context.Context, url string, now time.Time) error {
	if d.sink.topics != sinks.SeveralTopics {
		return nil
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = now.Add(sinks.LongestAway)
	}
	if wait := d.sink.urls.away.Ask(url, now, deadline); wait > 0 {
		return sinks.PutOff(wait)
	}
	d.sink.urls.begin(url)
	return nil
}

// learn keeps what a verdict says about other messages. If the topics of the sink differ, one URL may be away while others
// answer, so it takes more to find that the destination is away as a whole.
func (d *delivery) learn(ctx context.Context, v *verdict, url string, began time.Time) {
	if d.sink.topics != sinks.SeveralTopics {
		switch d.weigh(v.reach, url) {
		case thisURL, everything: // all messages have the same URL
			d.stop(v.err)
		}
		return
	}
	away, now := &d.sink.urls.away, time.Now()
	if v.answered {
		d.sink.urls.answered(url)
	}
	itself, others := d.sink.urls.end(url, began)
	switch {
	case !v.answered && errors.Is(ctx.Err(), context.DeadlineExceeded) && others && !itself: // the URL hangs, and not this message alone
		v.err, v.reach = fmt.Errorf("%w: %w", sinks.ErrTopicUnavailable, errNoAnswer(ctx)), thisURL
	case v.reach == thisMessage:
		away.Answered(url)
	case away.Wait(url, now) > 0: // this message has asked whether the URL is back
		away.Found(url, now)
		if v.reach != everything {
			return // that it is away says nothing new about the others
		}
	}
	switch d.weigh(v.reach, url) {
	case thisURL:
		away.Found(url, now)
	case everything:
		d.stop(v.err)
	}
}

// weigh returns the reach of a verdict in the light of the ones before it.
func (d *delivery) weigh(r reach, url string) reach {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r == thisMessage || r == thisURL {
		d.doubts = doubts{} // the destination has answered
		return r
	}
	d.doubts.several = d.doubts.several || d.doubts.count > 0 && d.doubts.url != url
	d.doubts.count++
	d.doubts.url = url
	oneTopic := d.sink.topics != sinks.SeveralTopics
	enough := d.doubts.count >= maxDoubts
	switch {
	case r == likely && oneTopic, enough && (oneTopic || d.doubts.several):
		return everything
	case r == likely, r == perhaps && enough:
		return thisURL
	}
	return r
}
