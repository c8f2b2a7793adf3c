package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	metadataAge   = 5 * time.Minute // after this time metadata is asked for again, and new partitions are found; the default of Java's client
	metadataPause = 10 * time.Second
)

// topic is what a producer knows about a topic.
type topic struct {
	name        string
	err         error        // why the topic cannot be used; the next Deliver asks for it again
	moved       bool         // a partition did not answer at its last leader; the next Deliver asks for the topic again
	partitions  []*partition // in the order of their numbers
	partitioner kgo.TopicPartitioner
	maxBatch    int // the largest batch of several records: maxBatchBytes until the topic refuses one
}

// partition is what a producer knows about a partition, and what it sends to it in the present wave.
type partition struct {
	topic  *topic
	number int32
	leader int32 // −1 if there is none

	// sequence is the number of the next record in the generation of the producer. By these numbers the broker
	// recognises repetitions.
	sequence   int32
	generation int

	// Of the wave:
	count                       int32 // how many records; 0 if the partition is not in the wave
	first, last                 int32 // the ends of the chain of these records
	size                        int   // the bytes of these records
	baseTimestamp, maxTimestamp int64
	batch                       []byte
	answer                      answer
	unknown                     bool // an earlier try may have been accepted

	// Of the present Deliver:
	round      int
	limit      int           // the most bytes of a batch of several records
	renumbered bool          // a new generation was tried already
	resting    error         // why it must not be tried; nil if it may
	again      time.Duration // see Sink.again
}

func (t *topic) place() place { return place{t.name, wholeTopic} }

func (p *partition) place() place { return place{p.topic.name, p.number} }

func (p *partition) String() string {
	return fmt.Sprintf("topic %q, partition %d", p.topic.name, p.number)
}

// isTopicName reports whether Kafka allows a topic with this name.
func isTopicName(s string) bool {
	if s == "" || len(s) > 249 || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// prepare loads the topics of a batch that are not known yet. From time to time it loads all known topics again. A
// topic that cannot be loaded has an error after that.
func (p *producer) prepare(ctx context.Context, batch []sinks.Message) {
	var names []string
	if now := time.Now(); now.After(p.refresh) {
		p.refresh = now.Add(metadataAge)
		for name, t := range p.topics {
			names = append(names, name)
			t.maxBatch = maxBatchBytes
		}
	}
	last := ""
	for i := range batch {
		name := batch[i].Topic
		if name == last && i > 0 {
			continue
		}
		last = name
		if t := p.topics[name]; t != nil {
			if t.moved && !slices.Contains(names, name) {
				names = append(names, name)
			}
			continue
		}
		t := &topic{name: name, maxBatch: maxBatchBytes, partitioner: p.sink.partitioner.ForTopic(name)}
		p.topics[name] = t
		if !isTopicName(name) {
			t.err = fmt.Errorf("%w: %.100q is no name for a topic", sinks.ErrPermanent, name)
		} else if t.err = p.sink.putOff(t.place()); t.err == nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return
	}
	class := sinks.ErrUnavailable
	err := p.patiently(ctx, func(ctx context.Context) error { return p.load(ctx, names) })
	if err == nil {
		class, err = p.sink.config.Topics.Unavailable(), errNoAnswer // about the topics that the answer has left out
	} else {
		p.refresh = time.Now().Add(metadataPause)
	}
	for _, name := range names {
		if t := p.topics[name]; t.err == nil && len(t.partitions) == 0 {
			t.err = fmt.Errorf("%w: ask for topic %q: %w", class, name, markLogin(err))
		}
	}
}

// forget drops the topics that cannot be used. If names of topics come from events, there may be any number of them.
// The next Deliver asks for them again.
func (p *producer) forget() {
	for name, t := range p.topics {
		if t.err != nil {
			delete(p.topics, name)
			p.stale = p.stale || len(t.partitions) > 0 // their sequence numbers are lost, so the next wave needs a new generation
		}
	}
}

// load asks for topics. It returns an error if the request fails, because the cluster is away then. The error of a single topic
// is kept in the topic.
func (p *producer) load(ctx context.Context, names []string) error {
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	for i := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &names[i]
		req.Topics = append(req.Topics, t)
	}
	resp, err := p.ask(ctx, req)
	if err != nil {
		if p.cluster != answering || !isTimeout(err) {
			p.cluster = silent
		}
		return err
	}
	p.cluster = answering
	class := p.sink.config.Topics.Unavailable()
	for _, mt := range resp.(*kmsg.MetadataResponse).Topics {
		if mt.Topic == nil || p.topics[*mt.Topic] == nil {
			continue
		}
		t := p.topics[*mt.Topic]
		t.err = topicError(&mt, class)
		switch {
		case t.err == nil:
			p.sink.answered(t.place())
			t.update(&mt, class)
		case errors.Is(t.err, sinks.ErrTopicUnavailable):
			p.sink.topics.Found(t.place(), time.Now())
		}
	}
	return nil
}

// topicError returns why the topic cannot be used, and nil if it can. class is that of a topic that is away.
func topicError(mt *kmsg.MetadataResponseTopic, class error) error {
	name, err := *mt.Topic, kerr.ErrorForCode(mt.ErrorCode)
	switch {
	case mt.ErrorCode == kerr.InvalidTopicException.Code:
		return fmt.Errorf("%w: topic %q: %w", sinks.ErrPermanent, name, err)
	case mt.ErrorCode == kerr.UnknownTopicOrPartition.Code:
		return fmt.Errorf("%w: topic %q: %w; create it", class, name, err)
	case err != nil:
		return fmt.Errorf("%w: topic %q: %w", class, name, err)
	case len(mt.Partitions) == 0:
		return fmt.Errorf("%w: topic %q has no partitions yet", class, name)
	}
	return nil
}

// update takes over the partitions of a topic and their leaders.
func (t *topic) update(mt *kmsg.MetadataResponseTopic, class error) {
	t.moved = false
	if len(mt.Partitions) < len(t.partitions) {
		t.err = fmt.Errorf("%w: topic %q was made anew", class, t.name) // the next Deliver starts with the new topic
		return
	}
	for len(t.partitions) < len(mt.Partitions) {
		t.partitions = append(t.partitions, &partition{topic: t, number: int32(len(t.partitions)), leader: -1})
	}
	for _, mp := range mt.Partitions {
		if int(mp.Partition) < len(t.partitions) {
			t.partitions[mp.Partition].leader = mp.Leader
		}
	}
}
