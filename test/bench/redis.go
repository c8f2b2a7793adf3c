//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// redisServer writes nothing to the disk. Redis's own defaults differ from that only by snapshots, which would fork it in
// the middle of a run.
type redisServer struct {
	*servers.Redis
	events int
}

func (b *bench) startRedis(ctx context.Context, events int) (destination, error) {
	server, err := servers.StartRedis(ctx, servers.RedisOptions{
		Settings: map[string]string{"appendonly": "no", "appendfsync": "everysec"}, Dir: b.options.dir,
	})
	return redisServer{server, events}, err
}

func (r redisServer) sink() string { return fmt.Sprintf("type: redis_stream, url: %q", r.URL()) }
func (r redisServer) PID() int     { return r.Pid() }
func (r redisServer) Kill()        { _ = r.Close() } // what it leaves is removed by the next that starts one

// check reads the stream.
func (r redisServer) check(ctx context.Context) (counts, error) {
	client := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer client.Close()
	const page = 1000
	t := newTally(r.events)
	for from := "-"; ; {
		entries, err := client.XRangeN(ctx, process.Topic, from, "+", page).Result()
		if err != nil {
			return counts{}, fmt.Errorf("read the stream: %w", err)
		}
		for _, e := range entries {
			aggregate, ok := e.Values["aggregate_id"].(string)
			payload, ok2 := e.Values["payload"].(string)
			if !ok || !ok2 {
				return counts{}, errors.New("an entry has no aggregate_id, or no payload")
			}
			if err := t.add(aggregate, []byte(payload)); err != nil {
				return counts{}, err
			}
			from = "(" + e.ID
		}
		if len(entries) < page {
			return t.counts(), nil
		}
	}
}
