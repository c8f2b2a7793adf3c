package demo

import (
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// arrival is an event as a consumer of Kafka sees it.
type arrival struct {
	Time      time.Time `json:"time"`
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Key       string    `json:"key"`
	EventType string    `json:"event_type"`
	ID        string    `json:"id"`
	Payload   string    `json:"payload"` // the bytes that were committed
	// Milliseconds is the time from the commit to the consumer. The commit's time is the record's timestamp, in milliseconds.
	Milliseconds int64 `json:"latency_ms"`
	Own          bool  `json:"own"` // written by a person
}

// arrivals knows all events that have arrived, and which of them the shop wrote. The consumer adds events while others read.
type arrivals struct {
	mu        sync.Mutex
	shops     map[string]bool // ids of the shop's events
	first     map[string]int  // by id: how many other events had arrived before this one arrived first
	repeated  int
	own       int
	latencies []int64 // milliseconds
}

// expect registers an event of the shop before its commit. An event that is not registered is a person's.
func (a *arrivals) expect(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shops == nil {
		a.shops = map[string]bool{}
	}
	a.shops[id] = true
}

// again counts the arrivals of events that had arrived before.
func (a *arrivals) again() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.repeated
}

// add takes note of a record.
func (a *arrivals) add(r *kgo.Record, now time.Time) arrival {
	event := arrival{
		Time: now, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: string(r.Key), Payload: string(r.Value),
		Milliseconds: now.Sub(r.Timestamp).Milliseconds(),
	}
	for _, h := range r.Headers {
		switch h.Key {
		case "id":
			event.ID = string(h.Value)
		case "eventType":
			event.EventType = string(h.Value)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.first == nil {
		a.first = map[string]int{}
	}
	event.Own = !a.shops[event.ID]
	if _, again := a.first[event.ID]; again {
		a.repeated++
		return event
	}
	a.first[event.ID] = len(a.first)
	a.latencies = append(a.latencies, event.Milliseconds)
	if event.Own {
		a.own++
	}
	return event
}

// missing counts the ids that have not arrived.
func (a *arrivals) missing(ids []string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range ids {
		if _, ok := a.first[id]; !ok {
			n++
		}
	}
	return n
}
