//go:build linux

package observe

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// receiver takes webhooks, and counts the events that it has accepted. It can be made to take none.
type receiver struct {
	server *httptest.Server
	// accepted are the ids of what was accepted. When a session ends, what it could not record any more comes again.
	accepted sync.Map
	// away makes it close connections without an answer.
	away atomic.Bool
	// slow makes it wait for so many nanoseconds before it answers.
	slow atomic.Int64
}

// poison begins the ids of aggregates that receivers refuse always.
const poison = "poison-"

func newReceiver(t testing.TB) *receiver {
	r := &receiver{}
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return // the sender has gone
		}
		select {
		case <-time.After(time.Duration(r.slow.Load())):
		case <-request.Context().Done():
			return
		}
		switch {
		case r.away.Load():
			panic(http.ErrAbortHandler)
		case strings.HasPrefix(request.Header.Get("X-Outbox-Aggregate-Id"), poison):
			w.WriteHeader(http.StatusBadRequest)
		default:
			r.accepted.Store(request.Header.Get("webhook-id"), true)
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(r.server.Close)
	return r
}

// events counts what it has accepted.
func (r *receiver) events() (n float64) {
	r.accepted.Range(func(any, any) bool { n++; return true })
	return n
}

// sink is its entry in the configuration of a connector.
func (r *receiver) sink(name string) map[string]any {
	return map[string]any{
		"name": name, "type": "webhook", "url": r.server.URL + "/events", "allow_hosts": []string{"127.0.0.1"}, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
	}
}
