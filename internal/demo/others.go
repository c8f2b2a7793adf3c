package demo

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// others holds the destinations beside Kafka, within this process: a Redis, and a receiver of webhooks that checks signatures.
type others struct {
	redis  *miniredis.Miniredis
	secret string // of the webhooks
	hook   *http.Server
	// hookAddr is where the receiver listens, and url its address.
	hookAddr, url string
	away          atomic.Bool // the receiver answers 503

	mu       sync.Mutex
	hooked   map[string]bool // ids of the events that came with a valid signature
	unsigned int
}

func startOthers(ctx context.Context) (*others, error) {
	o := &others{hooked: map[string]bool{}}
	var err error
	if o.redis, err = miniredis.Run(); err != nil {
		return nil, err
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	o.secret = "whsec_" + base64.StdEncoding.EncodeToString(key)
	verifier, err := standardwebhooks.NewWebhook(o.secret)
	if err != nil {
		o.close(ctx)
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		o.close(ctx)
		return nil, err
	}
	o.hookAddr = l.Addr().String()
	o.url = "http://" + o.hookAddr + "/events"
	o.hook = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the sender has gone
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if err := verifier.Verify(body, r.Header); err != nil {
			o.unsigned++
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		o.hooked[r.Header.Get("webhook-id")] = true
		w.WriteHeader(http.StatusNoContent)
	})}
	go func() { _ = o.hook.Serve(l) }() // if it fails, no webhook arrives any more, and the summary says so
	return o, nil
}

// ids returns the ids of the events in all of Redis's streams.
func (o *others) ids() (map[string]bool, error) {
	found := map[string]bool{}
	for _, stream := range o.redis.Keys() {
		entries, err := o.redis.Stream(stream)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			for i := 0; i+1 < len(e.Values); i += 2 {
				if e.Values[i] == "id" {
					found[e.Values[i+1]] = true
				}
			}
		}
	}
	return found, nil
}

// arrived counts which of the ids are in Redis, and which the receiver was sent.
func (o *others) arrived(ids []string) (redis, webhooks int, err error) {
	inRedis, err := o.ids()
	if err != nil {
		return 0, 0, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range ids {
		if inRedis[id] {
			redis++
		}
		if o.hooked[id] {
			webhooks++
		}
	}
	return redis, webhooks, nil
}

// close ends both.
func (o *others) close(ctx context.Context) {
	o.redis.Close()
	if o.hook != nil {
		if o.hook.Shutdown(ctx) != nil {
			_ = o.hook.Close()
		}
	}
}
