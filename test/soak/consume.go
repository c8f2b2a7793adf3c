//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// consumer reads a Redis stream and forgets what it has read, so that Redis does not grow. It compares what it reads with the
// numbers that the loader gives to the events.
type consumer struct {
	mu         sync.Mutex
	seen       []bool         // by number
	last       map[string]int // the highest number of each aggregate
	distinct   int
	duplicated int
	misordered int
	err        error
}

// consume reads until ctx ends.
func consume(ctx context.Context, addr string) *consumer {
	c := &consumer{last: map[string]int{}}
	go func() {
		err := c.run(ctx, addr)
		c.mu.Lock()
		defer c.mu.Unlock()
		if ctx.Err() == nil {
			c.err = fmt.Errorf("read the stream: %w", err)
		}
	}()
	return c
}

func (c *consumer) run(ctx context.Context, addr string) error {
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer client.Close()
	for from := "0"; ; {
		streams, err := client.XRead(ctx, &redis.XReadArgs{Streams: []string{process.Topic, from}, Count: 5000, Block: time.Second}).Result()
		switch {
		case errors.Is(err, redis.Nil):
			continue
		case err != nil:
			return err
		}
		for _, e := range streams[0].Messages {
			aggregate, _ := e.Values["aggregate_id"].(string)
			payload, _ := e.Values["payload"].(string)
			if err := c.add(aggregate, payload); err != nil {
				return err
			}
			from = e.ID
		}
		if err := client.XTrimMinID(ctx, process.Topic, from).Err(); err != nil {
			return err
		}
	}
}

func (c *consumer) add(aggregate, payload string) error {
	digits, _, _ := strings.Cut(strings.TrimPrefix(payload, `{"seq": `), ",")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 {
		return fmt.Errorf("what arrived is none of the events written: %.80q", payload)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.seen) <= n {
		c.seen = append(c.seen, false)
	}
	if c.seen[n] {
		c.duplicated++
		return nil
	}
	c.seen[n] = true
	c.distinct++
	if n < c.last[aggregate] {
		c.misordered++
	}
	c.last[aggregate] = max(n, c.last[aggregate])
	return nil
}

// await waits until so many events have arrived, or for a while.
func (c *consumer) await(ctx context.Context, events int) error {
	for range 300 {
		c.mu.Lock()
		there, err := c.distinct, c.err
		c.mu.Unlock()
		if err != nil || there >= events {
			return err
		}
		if err := process.Pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// rate is how many have arrived a second.
func (c *consumer) rate(within time.Duration) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return float64(c.distinct) / within.Seconds()
}

// tell reports what became of the events that were written.
func (c *consumer) tell(r *report, part string, written int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.tell(part, "events written", float64(written), "")
	r.most(part, "events missing", float64(written-c.distinct), "", 0)
	r.most(part, "events misordered", float64(c.misordered), "", 0)
	r.most(part, "events that arrived twice", float64(c.duplicated), "", 0)
}

// latencies returns the milliseconds from commit to acceptance of the events that were written in between, by PostgreSQL's clock.
// Their rows must still be there.
func (d *database) latencies(ctx context.Context, from, to time.Time) ([]float64, error) {
	all, err := value[[]float64](ctx, d, `select coalesce(array_agg(ms), '{}') from (
		select (extract(epoch from l.completed_at - pg_xact_commit_timestamp(e.xmin)) * 1000)::float8 as ms
		from event_outbox e join outbox_delivery_log l on l.event_id = e.id and l.status = 'delivered'
		where e.created_at >= $1 and e.created_at < $2) d`, from, to)
	return all, err
}

// now is the time by PostgreSQL's clock.
func (d *database) now(ctx context.Context) (time.Time, error) {
	return value[time.Time](ctx, d, "select clock_timestamp()")
}
