//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// startFake starts an empty Kafka fake with our topic.
func (b *bench) startFake(ctx context.Context) (*child, error) {
	_, port, err := net.SplitHostPort(b.broker)
	if err != nil {
		return nil, err
	}
	fake, err := startChild(filepath.Join(b.dir, "kafkafake.log"), b.fake,
		"-port", port, "-partitions", strconv.Itoa(partitions), "-topics", topic)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{}
	for range 500 {
		conn, err := dialer.DialContext(ctx, "tcp", b.broker)
		if err == nil {
			return fake, conn.Close()
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			fake.kill()
			return nil, err
		}
	}
	fake.kill()
	return nil, fmt.Errorf("the Kafka fake does not start:\n%s", fake.log())
}

// counts is what became of the events that were written.
type counts struct {
	Missing    int `json:"missing"`
	Misordered int `json:"misordered"`
	Duplicated int `json:"duplicated"`
	Unrecorded int `json:"unrecorded"` // without a delivered row in the ledger
}

func (c counts) add(o counts) counts {
	return counts{c.Missing + o.Missing, c.Misordered + o.Misordered, c.Duplicated + o.Duplicated, c.Unrecorded + o.Unrecorded}
}

// checkTopic reads the topic from its beginning and compares it with the events numbered from 1. Each writer numbers its
// events in the order of its commits, and no aggregate has two writers; so of each aggregate the numbers must rise.
func (b *bench) checkTopic(ctx context.Context, events int) (counts, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the topic cannot be read to its end"))
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.broker), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return counts{}, err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err := errors.Join(err, ends.Error()); err != nil {
		return counts{}, fmt.Errorf("ask how much is in the topic: %w", err)
	}
	var left int64
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })

	var c counts
	seen := make([]bool, events+1)
	last := map[string]int{} // the highest number by aggregate
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return c, fmt.Errorf("read the topic: %w", err)
		}
		for record := range fetches.RecordsAll() {
			left--
			n, err := number(record.Value)
			if err != nil || n < 1 || n > events {
				return c, fmt.Errorf("a record is none of the events written: %.80q", record.Value)
			}
			if seen[n] {
				c.Duplicated++
				continue
			}
			seen[n] = true
			key := string(record.Key)
			if n < last[key] {
				c.Misordered++
			}
			last[key] = max(last[key], n)
		}
	}
	for _, found := range seen[1:] {
		if !found {
			c.Missing++
		}
	}
	return c, nil
}

// number reads the event's number, with which the payload begins.
func number(payload []byte) (int, error) {
	rest, ok := bytes.CutPrefix(payload, []byte(`{"seq": `))
	if !ok {
		return 0, errors.New("the payload does not begin with its number")
	}
	digits, _, _ := bytes.Cut(rest, []byte(","))
	return strconv.Atoi(string(digits))
}
