package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pyairtable-compose/outbox-cdc/internal/shell"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var _ sinks.Checker = (*Sink)(nil)

// Check implements sinks.Checker. It connects anew, logs in, and asks for the topics without having them made. Then it asks each broker
// that leads a partition of them for its versions: clients get the addresses of these brokers from Kafka (advertised.listeners), and those
// may be wrong although the configured ones are right.
func (s *Sink) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	client, err := kgo.NewClient(s.options...)
	if err != nil {
		return nil, err
	}
	defer client.Close() // which also ends what still runs after ctx has ended
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	req.IncludeTopicAuthorizedOperations = true
	req.Topics = []kmsg.MetadataRequestTopic{} // nil would stand for all topics
	for i := range topics {
		if isTopicName(topics[i]) {
			t := kmsg.NewMetadataRequestTopic()
			t.Topic = &topics[i]
			req.Topics = append(req.Topics, t)
		}
	}
	resp, err := answerTo(ctx, func() (kmsg.Response, error) { return client.Request(ctx, req) })
	if err != nil {
		return nil, fmt.Errorf("ask %s for metadata: %w", strings.Join(s.config.Brokers, ", "), markLogin(err))
	}
	meta := resp.(*kmsg.MetadataResponse)
	found := map[string]*kmsg.MetadataResponseTopic{}
	for i := range meta.Topics {
		if t := &meta.Topics[i]; t.Topic != nil {
			found[*t.Topic] = t
		}
	}
	silent := askLeaders(ctx, client, meta)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	checks := make([]sinks.TopicCheck, len(topics))
	for i, name := range topics {
		checks[i] = s.checkTopic(name, found[name], silent)
	}
	return checks, nil
}

// askLeaders asks each broker that leads a partition for its versions. It returns the errors of those that do not answer, by their id.
func askLeaders(ctx context.Context, client *kgo.Client, meta *kmsg.MetadataResponse) map[int32]error {
	address := map[int32]string{}
	for _, b := range meta.Brokers {
		address[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	leaders := map[int32]struct{}{}
	for _, t := range meta.Topics {
		for _, p := range t.Partitions {
			if p.Leader >= 0 {
				leaders[p.Leader] = struct{}{}
			}
		}
	}
	var mu sync.Mutex
	silent := map[int32]error{}
	var asked sync.WaitGroup
	for id := range leaders {
		asked.Go(func() {
			_, err := answerTo(ctx, func() (kmsg.Response, error) {
				return client.Broker(int(id)).Request(ctx, kmsg.NewPtrApiVersionsRequest())
			})
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				silent[id] = fmt.Errorf("the broker that leads it is advertised as %s, and does not answer there: %w", address[id], err)
			}
		})
	}
	asked.Wait()
	return silent
}

// answerTo returns what ask returns, or the cause of the end of ctx if that comes first. ask then goes on until its client is closed.
func answerTo(ctx context.Context, ask func() (kmsg.Response, error)) (kmsg.Response, error) {
	type reply struct {
		resp kmsg.Response
		err  error
	}
	done := make(chan reply, 1)
	go func() {
		resp, err := ask()
		done <- reply{resp, err}
	}()
	select {
	case r := <-done:
		return r.resp, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// checkTopic returns what the cluster says of one topic. found is nil if its answer does not mention the topic.
func (s *Sink) checkTopic(name string, found *kmsg.MetadataResponseTopic, silent map[int32]error) sinks.TopicCheck {
	c := sinks.TopicCheck{Kind: "topic", Topic: name}
	switch {
	case !isTopicName(name):
		c.Err = fmt.Errorf("%.100q is no name for a topic", name)
	case found == nil:
		c.Err = errNoAnswer
	case found.ErrorCode == kerr.UnknownTopicOrPartition.Code:
		c.Err = errors.New("it does not exist")
		c.Remedy = s.command("kafka-topics.sh") + " --create --topic " + name
	case found.ErrorCode == kerr.TopicAuthorizationFailed.Code, !mayWrite(found.AuthorizedOperations):
		c.Err = errors.New("this login has no right to write to it")
		if user := s.config.SASL.Username; user != "" {
			c.Remedy = s.command("kafka-acls.sh") + " --add --allow-principal " + shell.Quote("User:"+user) + " --producer --topic " + name
		}
	case found.ErrorCode != 0:
		c.Err = kerr.ErrorForCode(found.ErrorCode)
	case len(found.Partitions) == 0:
		c.Err = errors.New("it has no partitions yet")
	default:
		c.Err = unledPartition(found.Partitions, silent)
	}
	return c
}

// unledPartition returns why a partition takes nothing now, and nil if all can.
func unledPartition(all []kmsg.MetadataResponseTopicPartition, silent map[int32]error) error {
	for _, p := range all {
		switch {
		case p.Leader < 0:
			return fmt.Errorf("partition %d has no leader now", p.Partition)
		case silent[p.Leader] != nil:
			return silent[p.Leader]
		}
	}
	return nil
}

// mayWrite reads authorized operations: a bit for each operation, by its number. Servers that do not tell leave them out. Whoever may
// ask for a topic may describe it, so that an answer without this operation tells nothing.
func mayWrite(operations int32) bool {
	has := func(op kmsg.ACLOperation) bool { return operations&(1<<op) != 0 }
	return operations < 0 || !has(kmsg.ACLOperationDescribe) || has(kmsg.ACLOperationWrite) || has(kmsg.ACLOperationAll)
}

// command returns one of Kafka's commands with what it needs to connect. Its file of properties is the person's own, with a login that may
// do more than ours.
func (s *Sink) command(name string) string {
	c := name + " --bootstrap-server " + shell.Quote(strings.Join(s.config.Brokers, ","))
	if s.config.SASL.Mechanism != "" || s.config.TLS != nil {
		c += " --command-config admin.properties"
	}
	return c
}
