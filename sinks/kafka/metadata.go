package kafka

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	metadataAge   = 5 * time.Minute // as in Java: after that, new partitions are seen
	metadataPause = 10 * time.Second
)

// topic is what a producer knows of one.
type topic struct {
	name        string
	err         error        // it cannot be had; asked for again by the next Deliver
	moved       bool         // a partition did not answer where it was last: asked for again by the next Deliver
	partitions  []*partition // in the order of their numbers
	partitioner kgo.TopicPartitioner
	maxBatch    int // batches of several records are no larger: maxBatchBytes until the topic refuses one
}

// partition is one of a topic, as one producer sees it, with its share of the wave.
type partition struct {
	topic  *topic
	number int32
	leader int32 // −1: none

	// sequence is the number of the next record in the producer's generation, by which the broker knows a repetition.
	sequence   int32
	generation int

	// Of the wave:
	count                       int32 // records, 0: not in it
	first, last                 int32 // the ends of their chain
	size                        int   // their bytes
	baseTimestamp, maxTimestamp int64
	batch                       []byte
	answer                      answer
	unknown                     bool // an earlier try may have been accepted

	// Of the Deliver:
	round      int
	limit      int  // bytes of a batch of several records
	renumbered bool // once
}

func (p *partition) place() place { return place{p.topic.name, p.number} }

func (p *partition) String() string {
	return fmt.Sprintf("topic %q, partition %d", p.topic.name, p.number)
}

// isTopicName tells whether Kafka allows a topic of that name.
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

// prepare loads what is not known of the topics of a batch, and everything anew once in a while. What cannot be had
// has an error then.
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
		if isTopicName(name) {
			names = append(names, name)
		} else {
			t.err = fmt.Errorf("%w: %.100q is no name for a topic", sinks.ErrPermanent, name)
		}
	}
	if len(names) == 0 {
		return
	}
	err := p.patiently(ctx, func(ctx context.Context) error { return p.load(ctx, names) })
	if err == nil {
		return
	}
	p.refresh = time.Now().Add(metadataPause)
	for _, name := range names {
		if t := p.topics[name]; len(t.partitions) == 0 {
			t.err = fmt.Errorf("%w: ask for topic %q: %w", sinks.ErrUnavailable, name, err)
		}
	}
}

// forget drops the topics that cannot be had, of which there is no end where names come from events. The next Deliver
// asks for them again.
func (p *producer) forget() {
	for name, t := range p.topics {
		if t.err != nil {
			delete(p.topics, name)
			p.stale = p.stale || len(t.partitions) > 0 // their sequence numbers go with them
		}
	}
}

// load asks for topics. An error is one of the request; one of a topic is kept with it.
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
		return err
	}
	for _, mt := range resp.(*kmsg.MetadataResponse).Topics {
		if mt.Topic == nil || p.topics[*mt.Topic] == nil {
			continue
		}
		p.topics[*mt.Topic].update(&mt)
	}
	return nil
}

func (t *topic) update(mt *kmsg.MetadataResponseTopic) {
	err := kerr.ErrorForCode(mt.ErrorCode)
	switch mt.ErrorCode {
	case 0:
		t.err = nil
	case kerr.InvalidTopicException.Code:
		t.err = fmt.Errorf("%w: topic %q: %w", sinks.ErrPermanent, t.name, err)
	case kerr.UnknownTopicOrPartition.Code:
		t.err = fmt.Errorf("%w: topic %q: %w; create it", sinks.ErrUnavailable, t.name, err)
	default:
		t.err = fmt.Errorf("%w: topic %q: %w", sinks.ErrUnavailable, t.name, err)
	}
	if t.err == nil && len(mt.Partitions) == 0 {
		t.err = fmt.Errorf("%w: topic %q has no partitions yet", sinks.ErrUnavailable, t.name)
	}
	if t.err != nil {
		return
	}
	t.moved = false
	if len(mt.Partitions) < len(t.partitions) {
		t.err = fmt.Errorf("%w: topic %q was made anew", sinks.ErrUnavailable, t.name) // the next Deliver begins anew, too
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
