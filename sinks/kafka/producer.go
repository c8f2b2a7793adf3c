package kafka

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
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
	type reply struct {
		resp kmsg.Response
		err  error
	}
	done := make(chan reply, 1)
	go func() {
		resp, err := p.client.Request(ctx, req)
		done <- reply{resp, err}
	}()
	select {
	case r := <-done:
		return r.resp, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// patiently repeats a try for as long as an election may take. If the cluster was away before, it tries only once.
func (p *producer) patiently(ctx context.Context, try func(context.Context) error) error {
	if p.sink.away.resting(wholeCluster) {
		return errResting
	}
	giveUp := time.Now().Add(p.sink.patience)
	for {
		once, cancel := context.WithTimeout(ctx, p.sink.patience)
		err := try(once)
		cancel()
		switch {
		case err == nil:
			p.sink.away.clear(wholeCluster)
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
		for _, part := range wave {
			part.answer = answer{verdict: unavailable, err: err}
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
	giveUp := time.Now().Add(p.sink.patience)
	for {
		p.exchange(ctx, p.open)
		p.open = slices.DeleteFunc(p.open, func(part *partition) bool {
			part.unknown = part.unknown || part.answer.unknown
			return part.answer.verdict != transient || p.sink.away.known(part.place())
		})
		if len(p.open) == 0 || ctx.Err() != nil || time.Now().After(giveUp) {
			break
		}
		pause(ctx)
		p.relocate(ctx)
	}
	if ctx.Err() != nil {
		p.encoder.wave = nil // the client may still read it, so the next wave needs another buffer
	}
	for _, part := range wave {
		p.conclude(ctx, part)
	}
}

// relocate asks who leads the open partitions now. It ignores an error: the next try will fail for the same reason.
func (p *producer) relocate(ctx context.Context) {
	var names []string
	for _, part := range p.open {
		if !slices.Contains(names, part.topic.name) {
			names = append(names, part.topic.name)
		}
	}
	once, cancel := context.WithTimeout(ctx, p.sink.patience)
	defer cancel()
	if p.load(once, names) != nil {
		return
	}
	p.open = slices.DeleteFunc(p.open, func(part *partition) bool {
		if part.topic.err != nil {
			part.answer.verdict = unavailable
		}
		return part.topic.err != nil
	})
}

// conclude turns the last answer of a partition into its final one.
func (p *producer) conclude(ctx context.Context, part *partition) {
	a := &part.answer
	if a.verdict == accepted {
		part.sequence = int32((int64(part.sequence) + int64(part.count)) & math.MaxInt32)
		p.sink.away.clear(part.place())
		return
	}
	p.stale = true
	if part.unknown && a.verdict != transient { // this answer is about a repetition; the first try may have been accepted
		a.verdict = unavailable
	}
	if a.verdict == transient {
		a.verdict = unavailable
		part.topic.moved = true                      // asked for again by the next Deliver, because a partition that is known to be away is not relocated
		if !errors.Is(ctx.Err(), context.Canceled) { // a cancelled context says nothing about the broker
			var until time.Time // the zero time: it failed fast, so the next Deliver may try again
			if a.timedOut {
				until = p.sink.restUntil()
			}
			p.sink.away.set(part.place(), until)
		}
	}
	a.unknown = part.unknown
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
	var all sync.WaitGroup
	for leader, parts := range byLeader {
		if len(byLeader) == 1 {
			p.produce(ctx, leader, parts)
			return
		}
		all.Go(func() { p.produce(ctx, leader, parts) })
	}
	all.Wait()
}

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
				t.partitions[rp.Partition].answer = judge(rp.ErrorCode)
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
	p.key.Key = append(p.key.Key[:0], key...)
	part := t.partitions[t.partitioner.Partition(&p.key, len(t.partitions))]
	if part.round != p.round {
		part.round, part.limit, part.renumbered = p.round, t.maxBatch, false
	}
	return part, nil
}
