package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// producer sends for one Deliver at a time. It has connections of its own: a broker answers the requests of a
// connection one after the other, so on a common connection a request that waits for replicas would hold back all
// lanes. Within a generation of the producer (its id and epoch) each partition has at most one batch whose outcome is
// not known.
type producer struct {
	sink    *Sink
	client  *kgo.Client
	topics  map[string]*topic
	refresh time.Time // when to ask again for all known topics

	id         int64 // −1 before the first one
	epoch      int16
	generation int
	stale      bool // a sequence number may have been used already, so the next wave needs a new generation

	encoder encoder
	// Of the running Deliver. The next one uses the memory again.
	delivery delivery
	round    int        // counts calls of Deliver
	key      kgo.Record // holds the key for the partitioner
	open     []*partition
	cluster  evidence
	gone     error // why the cluster as a whole is away; nothing more is sent then
}

// evidence says whether a broker has answered in the running Deliver, whatever the answer was. It tells a topic that is away
// from a cluster that is away.
type evidence byte

const (
	unasked evidence = iota
	answering
	silent // the last metadata request has failed. A time-out of one broker takes nothing back that another one has answered
)

// begin prepares for a call of Deliver.
func (p *producer) begin() {
	p.round++
	p.cluster, p.gone = unasked, nil
}

func newProducer(s *Sink) (*producer, error) {
	client, err := kgo.NewClient(s.options...)
	if err != nil {
		return nil, err
	}
	return &producer{
		sink: s, client: client, id: -1, topics: make(map[string]*topic), encoder: encoder{compressor: s.compressor},
		key: kgo.Record{Key: []byte{}}, // an empty key has a partition, as in Java; a nil key would not
	}, nil
}

// ask sends a request that any broker can answer. It returns at the latest when ctx ends. (The client's own Request
// does not, while it waits for a connection.)
func (p *producer) ask(ctx context.Context, req kmsg.Request) (kmsg.Response, error) {
	return answerTo(ctx, func() (kmsg.Response, error) { return p.client.Request(ctx, req) })
}

// patiently repeats a try for as long as an election may take. If the cluster was away before, it tries only once.
func (p *producer) patiently(ctx context.Context, try func(context.Context) error) error {
	if p.sink.away.resting(wholeCluster) {
		p.cluster = silent
		return errResting
	}
	giveUp := time.Now().Add(p.sink.patience)
	for {
		once, cancel := context.WithTimeout(ctx, p.sink.patience/2) // if this broker hangs, the next try asks another
		err := try(once)
		cancel()
		switch {
		case err == nil:
			p.clusterAnswers()
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isFinal(err):
			return err
		case p.sink.away.known(wholeCluster) || time.Now().After(giveUp):
			var until time.Time // the zero time: it failed fast, so the next Deliver may try again
			if isTimeout(err) {
				until = p.sink.restUntil()
			}
			p.sink.away.set(wholeCluster, until)
			return err
		}
		pause(ctx)
	}
}

func (p *producer) clusterAnswers() {
	p.cluster = answering
	p.sink.away.clear(wholeCluster)
}

func pause(ctx context.Context) {
	t := time.NewTimer(retryPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// identify makes sure that no sequence number of the coming wave has been used for other records. Otherwise the broker
// would take a new batch for the repetition of an old one. A producer may raise its epoch without asking the broker
// (KIP-360). In the new epoch numbers begin at 0, and the broker refuses batches of the old epoch that are still under
// way.
func (p *producer) identify(ctx context.Context) error {
	if p.stale {
		p.stale = false
		p.generation++
		if p.epoch++; p.epoch == math.MaxInt16 {
			p.id = -1
		}
	}
	if p.id >= 0 {
		return nil
	}
	return p.patiently(ctx, func(ctx context.Context) error {
		resp, err := p.ask(ctx, kmsg.NewPtrInitProducerIDRequest())
		if err != nil {
			return err
		}
		r := resp.(*kmsg.InitProducerIDResponse)
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return err
		}
		p.id, p.epoch = r.ProducerID, r.ProducerEpoch
		p.generation++
		return nil
	})
}

// send sends the wave. After that each partition of it has a final answer. A failure that has not passed within
// patience, or before ctx ended, becomes unavailable.
func (p *producer) send(ctx context.Context, wave []*partition, records []record) {
	if err := p.identify(ctx); err != nil {
		p.gone = err
		for _, part := range wave {
			part.answer = answer{verdict: unavailable, class: sinks.ErrUnavailable, err: err}
		}
		return
	}
	for _, part := range wave {
		if part.generation != p.generation {
			part.generation, part.sequence = p.generation, 0
		}
		part.unknown = false
	}
	p.encoder.encode(wave, records, p.id, p.epoch)
	p.open = append(p.open[:0], wave...)
	if again := longestAgain(wave); again > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, again)
		defer cancel()
		p.open = p.relocate(ctx, p.open) // the leaders may have moved since
	}
	p.try(ctx)
	if ctx.Err() != nil {
		p.encoder.wave = nil // the client may still read it, so the next wave needs another buffer
	}
	p.askCluster(ctx, wave)
	for _, part := range wave {
		p.conclude(ctx, part)
	}
}

// longestAgain returns how long the wave may take if its partitions are asked again, and 0 if they are not.
func longestAgain(wave []*partition) (again time.Duration) {
	for _, part := range wave {
		again = max(again, part.again)
	}
	return again
}

// try sends the open partitions, and sends them again after failures that may pass.
func (p *producer) try(ctx context.Context) {
	began := time.Now()
	patience := p.sink.patience
	if p.cluster == silent {
		patience = 0 // it was spent on metadata
	}
	for {
		p.exchange(ctx, p.open)
		p.open = slices.DeleteFunc(p.open, func(part *partition) bool {
			part.unknown = part.unknown || part.answer.unknown
			return part.answer.verdict != transient || part.again > 0 || p.sink.away.known(part.place())
		})
		if p.cluster == answering && p.sink.config.Topics == sinks.SeveralTopics {
			patience = min(patience, p.sink.topicPatience)
		}
		if len(p.open) == 0 || ctx.Err() != nil || time.Since(began) > patience {
			return
		}
		pause(ctx)
		p.open = p.relocate(ctx, p.open)
	}
}

// askCluster finds out whether the cluster as a whole is away, if a partition has failed and nothing else has been asked yet.
func (p *producer) askCluster(ctx context.Context, wave []*partition) {
	if p.cluster != unasked || ctx.Err() != nil || p.sink.config.Topics == sinks.OneTopic {
		return
	}
	p.open = p.open[:0]
	for _, part := range wave {
		if part.answer.verdict == transient {
			p.open = append(p.open, part)
		}
	}
	if len(p.open) > 0 {
		p.open = p.relocate(ctx, p.open)
	}
}

// relocate asks who leads the partitions now. It returns those whose topics can still be used, in the memory of parts, and gives
// the others their answers. It ignores an error: the next try will fail for the same reason.
func (p *producer) relocate(ctx context.Context, parts []*partition) (usable []*partition) {
	var names []string
	for _, part := range parts {
		if !slices.Contains(names, part.topic.name) {
			names = append(names, part.topic.name)
		}
	}
	once, cancel := context.WithTimeout(ctx, p.sink.patience/2)
	defer cancel()
	if p.load(once, names) != nil {
		return parts
	}
	return slices.DeleteFunc(parts, func(part *partition) bool {
		if part.topic.err != nil {
			part.answer = answer{verdict: unavailable, err: part.topic.err}
		}
		return part.topic.err != nil
	})
}

// conclude turns the last answer of a partition into its final one, and remembers what it says about the partition.
func (p *producer) conclude(ctx context.Context, part *partition) {
	a := &part.answer
	if a.verdict == accepted {
		part.sequence = int32((int64(part.sequence) + int64(part.count)) & math.MaxInt32)
		p.sink.answered(part.place())
		part.again = 0
		return
	}
	p.stale = true
	a.unknown = part.unknown
	given := a.verdict
	if given == transient || part.unknown { // if this is about a repetition, the first try may have been accepted all the same
		a.verdict = unavailable
	}
	a.class = p.sink.config.Topics.Unavailable()
	if a.cluster || p.cluster != answering {
		a.class = sinks.ErrUnavailable
	}
	if a.cluster || given == transient && p.cluster == silent {
		p.gone = a.err
	}
	if errors.Is(ctx.Err(), context.Canceled) || a.cluster || part.topic.err != nil { // none of this is about the partition
		return
	}
	switch {
	case given == refused || given == renumber:
		p.sink.answered(part.place())
		part.again = 0
	case errors.Is(a.class, sinks.ErrTopicUnavailable):
		p.sink.topics.Found(part.place(), time.Now())
	case given == transient:
		part.topic.moved = true // asked for again by the next Deliver, because a partition that is known to be away is not relocated
		var until time.Time     // the zero time: it failed fast, so the next Deliver may try again
		if a.timedOut {
			until = p.sink.restUntil()
		}
		p.sink.away.set(part.place(), until)
	}
	part.resting = p.sink.resting(part)
}

// notSent returns the error of messages that were not sent.
func (p *producer) notSent(ctx context.Context) error {
	switch {
	case p.gone != nil:
		return fmt.Errorf("%w: not sent: %w", sinks.ErrUnavailable, p.gone)
	case p.cluster == answering:
		return fmt.Errorf("%w: %w", sinks.ErrNotAttempted, context.Cause(ctx))
	}
	return fmt.Errorf("%w: not sent: %w", sinks.ErrUnavailable, context.Cause(ctx))
}

// exchange sends the batches of the partitions to their leaders, waits for the answers, and stores them in the partitions.
func (p *producer) exchange(ctx context.Context, open []*partition) {
	byLeader := make(map[int32][]*partition, 4)
	for _, part := range open {
		part.answer = answer{err: errNoAnswer, unknown: true}
		byLeader[part.leader] = append(byLeader[part.leader], part)
	}
	for _, part := range byLeader[-1] {
		part.answer = answer{err: kerr.LeaderNotAvailable}
	}
	delete(byLeader, -1)
	heard := p.listen(ctx)
	var all sync.WaitGroup
	for leader, parts := range byLeader {
		if len(byLeader) == 1 {
			p.produce(ctx, leader, parts)
		} else {
			all.Go(func() { p.produce(ctx, leader, parts) })
		}
	}
	all.Wait()
	if heard() || slices.ContainsFunc(open, func(part *partition) bool { return part.answer.fromBroker }) {
		p.clusterAnswers()
	}
}

// listen asks, from patience on, whether any broker answers, if none has in this Deliver. A leader that hangs would otherwise use
// up all the time, and nobody would know whether the cluster is away as a whole. heard ends it, and reports whether one has
// answered.
func (p *producer) listen(ctx context.Context) (heard func() bool) {
	if p.cluster != unasked || p.sink.config.Topics == sinks.OneTopic {
		return func() bool { return false }
	}
	ctx, cancel := context.WithCancel(ctx)
	var answers atomic.Bool
	timer := time.AfterFunc(p.sink.patience, func() {
		for ctx.Err() == nil {
			once, done := context.WithTimeout(ctx, p.sink.patience/2) // if this broker hangs, the next try asks another
			req := kmsg.NewPtrMetadataRequest()
			req.Topics = []kmsg.MetadataRequestTopic{} // of no topic; nil would stand for all
			_, err := p.ask(once, req)
			done()
			if err == nil {
				answers.Store(true)
				return
			}
			pause(ctx)
		}
	})
	return func() bool {
		timer.Stop()
		cancel()
		return answers.Load()
	}
}

// produce sends the batches of partitions that have the same leader.
func (p *producer) produce(ctx context.Context, leader int32, parts []*partition) {
	req := kmsg.NewPtrProduceRequest()
	req.Acks = -1
	req.TimeoutMillis = brokerTimeout(ctx)
	at := make(map[*topic]int, 1)
	for _, part := range parts {
		i, ok := at[part.topic]
		if !ok {
			i = len(req.Topics)
			at[part.topic] = i
			req.Topics = append(req.Topics, kmsg.ProduceRequestTopic{Topic: part.topic.name})
		}
		req.Topics[i].Partitions = append(req.Topics[i].Partitions,
			kmsg.ProduceRequestTopicPartition{Partition: part.number, Records: part.batch})
	}
	resp, err := p.client.Broker(int(leader)).Request(ctx, req)
	if err != nil {
		a := judgeError(err)
		if ctx.Err() != nil {
			a = answer{err: context.Cause(ctx), unknown: true, timedOut: true}
		}
		for _, part := range parts {
			part.answer = a
		}
		return
	}
	for _, rt := range resp.(*kmsg.ProduceResponse).Topics {
		t := p.topics[rt.Topic]
		for _, rp := range rt.Partitions {
			if t != nil && int(rp.Partition) < len(t.partitions) {
				a := &t.partitions[rp.Partition].answer
				*a = judge(rp.ErrorCode)
				a.fromBroker = true
			}
		}
	}
}

// brokerTimeout returns how long a broker may wait for replicas, in milliseconds. It is short enough that the broker
// still answers, with what it knows about each partition, before ctx ends.
func brokerTimeout(ctx context.Context) int32 {
	left := maxWait
	if deadline, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(deadline))
	}
	left -= min(left/10, time.Second)
	return int32(max(left.Milliseconds(), 1))
}

// place finds the partition of m. If m has no key, the id of the aggregate is used instead, so that the events of an
// aggregate stay in order.
func (p *producer) place(m *sinks.Message) (*partition, error) {
	t := p.topics[m.Topic]
	if t.err != nil {
		return nil, t.err
	}
	key := m.Key
	if key == "" {
		key = m.Event.AggregateID
	}
	if p.key.Key == nil {
		p.key.Key = []byte{} // nil stands for a record without a key, which may go to any partition
	}
	p.key.Key = append(p.key.Key[:0], key...)
	part := t.partitions[t.partitioner.Partition(&p.key, len(t.partitions))]
	if part.round != p.round {
		part.round, part.limit, part.renumbered = p.round, t.maxBatch, false
		part.resting, part.again = p.sink.resting(part), p.sink.again(part.place())
	}
	return part, nil
}
