//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// troubles are events of two aggregates; 4 comes before 2, 3 twice, and 7 and 8 never.
var troubles = []int{1, 4, 2, 3, 3, 5, 6}

func payload(n int) []byte { return fmt.Appendf(nil, `{"seq": %d, "data": ""}`, n) }

func expectTroubles(t *testing.T, to destination) {
	t.Helper()
	got, err := to.check(t.Context())
	if want := (counts{Missing: 2, Misordered: 1, Duplicated: 1}); got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// expectStranger: to has an event that was never written.
func expectStranger(t *testing.T, to destination) {
	t.Helper()
	if _, err := to.check(t.Context()); err == nil {
		t.Error("an event that was never written is no error")
	}
}

func TestRedisCheck(t *testing.T) {
	t.Parallel()
	b := &bench{}
	to, err := b.startRedis(t.Context(), 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(to.Kill)
	r := to.(redisServer)
	client := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer client.Close()
	for _, n := range troubles {
		values := map[string]any{"aggregate_id": fmt.Sprint("order-", n%2), "payload": payload(n)}
		if err := client.XAdd(t.Context(), &redis.XAddArgs{Stream: process.Topic, Values: values}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	expectTroubles(t, r)
	r.events = 5
	expectStranger(t, r)
}

func TestNATSCheck(t *testing.T) {
	t.Parallel()
	b := &bench{}
	to, err := b.startNATS(t.Context(), 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(to.Kill)
	n := to.(natsServer)
	conn, err := nats.Connect(n.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range troubles {
		m := &nats.Msg{Subject: process.Topic + ".changed", Header: nats.Header{"ce-subject": {fmt.Sprint("order-", i%2)}}, Data: payload(i)}
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	expectTroubles(t, n)
	n.events = 5
	expectStranger(t, n)
}

// TestReceiver: what overtakes is seen, be it that it comes before the answer to the one before it.
func TestReceiver(t *testing.T) {
	t.Parallel()
	h := newHook(process.Aggregates + 2)
	server := httptest.NewServer(h.handler())
	t.Cleanup(server.Close)
	to := receiver{url: server.URL}
	post := func(n int) {
		answer, err := http.Post(server.URL+"/events", "application/json", bytes.NewReader(payload(n)))
		if err != nil {
			t.Error(err)
			return
		}
		_ = answer.Body.Close()
	}
	var all sync.WaitGroup
	for n := 3; n <= process.Aggregates; n += 100 {
		all.Go(func() { post(n) })
	}
	all.Wait()
	post(process.Aggregates + 1)
	post(1)
	post(2)
	post(2)
	got, err := to.check(t.Context())
	if want := (counts{Missing: process.Aggregates - 51, Misordered: 1, Duplicated: 1}); got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	h.begin(aggregateOf(2), payload(2))
	h.begin(aggregateOf(2), payload(process.Aggregates+2))
	if got := h.tally.counts(); got.Misordered != 2 {
		t.Errorf("%+v: an event came before the answer to the one before it", got)
	}
	post(process.Aggregates + 3)
	expectStranger(t, to)
}
