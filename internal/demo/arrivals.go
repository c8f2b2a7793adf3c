package demo

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

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
	Payload   string    `json:"payload"` // a text: the bytes that were committed
	// Milliseconds from the commit, whose time is the record's timestamp and has that resolution, to the consumer.
	Milliseconds int64 `json:"latency_ms"`
	Own          bool  `json:"own"` // a person's
}

// arrivals are all events that have arrived, and who wrote what. The consumer adds them while others look.
type arrivals struct {
	mu        sync.Mutex
	shops     map[string]bool // ids of the shop
	first     map[string]int  // when an id arrived first, as its number among all
	repeated  int
	own       int
	latencies []int64 // milliseconds
}

// expect makes the shop's events known, before they are committed.
func (a *arrivals) expect(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shops == nil {
		a.shops = map[string]bool{}
	}
	a.shops[id] = true
}

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

// missing counts which of the ids have not arrived.
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

const (
	row     = "%-2s %-12s %7s  %-20s %-8s %-16s %-36s %s"
	heading = "   arrived at   latency  topic                key      event type       id                                   payload"
	excerpt = 60 // characters
)

// show prints an event on one line.
func (d *demo) show(a arrival) error {
	if d.JSON {
		return json.NewEncoder(d.Out).Encode(a)
	}
	mark := ""
	if a.Own {
		mark = ">>"
	}
	_, err := fmt.Fprintf(d.Out, row+"\n", mark, a.Time.Format("15:04:05.000"), fmt.Sprintf("%d ms", a.Milliseconds),
		line(a.Topic), line(a.Key), line(a.EventType), line(a.ID), line(a.Payload))
	return err
}

// line is the beginning of a text, fit for one line of a terminal: what is in an event may be anything.
func line(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	if r := []rune(s); len(r) > excerpt {
		return string(r[:excerpt-1]) + "…"
	}
	return s
}
