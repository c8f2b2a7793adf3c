package webhook

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

var errRefused = errors.New("any error of no class")

// isOf reports whether err belongs to this class and to no other.
func isOf(err, class error) bool {
	if err == nil || class == nil {
		return err == class //nolint:errorlint // both may be nil
	}
	is := errRefused
	for _, c := range []error{sinks.ErrPermanent, sinks.ErrUnavailable, sinks.ErrTopicUnavailable, sinks.ErrNotAttempted} {
		if errors.Is(err, c) {
			is = c
		}
	}
	return is == class //nolint:errorlint // it is one of these five
}

func expectErrors(t *testing.T, errs []error, want ...error) {
	t.Helper()
	if len(errs) != len(want) {
		t.Errorf("%d errors for %d messages: %v", len(errs), len(want), errs)
		return
	}
	for i := range want {
		if !isOf(errs[i], want[i]) {
			t.Errorf("message %d: want %v, got %v", i, want[i], errs[i])
		}
	}
}

// TestAcceptThenReset: if the connection is reset after the request was read, the message may have been accepted. The request
// is sent once more if the connection had been used before, and not if it was new.
func TestAcceptThenReset(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(net.Conn){
		"reset": func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) },
		"close": func(net.Conn) {},
		"half an answer": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Echo: "+canary+"\r\n") // it is closed next
		},
		"no HTTP": func(c net.Conn) { _, _ = io.WriteString(c, canary+"\r\n\r\n") },
		"endless header": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Echo: "+strings.Repeat(canary, maxAnswer))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const connections = 4
			var asked, open atomic.Int32
			var healthy atomic.Bool
			full := make(chan struct{})
			rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
				if healthy.Load() {
					if open.Add(1) == connections {
						close(full)
					}
					select {
					case <-full:
					case <-r.Context().Done():
					}
					return
				}
				asked.Add(1)
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				end(conn)
				conn.Close()
				w.status = 999
			})
			s := newSink(t, Config{URL: rec.URL, Connections: connections})
			expectErrors(t, deliver(t, s, batchOf("a/1", "a/2")), sinks.ErrUnavailable, sinks.ErrNotAttempted)
			if n := asked.Load(); n != 1 {
				t.Errorf("sent %d times over new connections", n)
			}
			healthy.Store(true)
			expectErrors(t, deliver(t, s, batchOf("a/1", "b/1", "c/1", "d/1"))) // all connections are kept
			healthy.Store(false)
			asked.Store(0)
			expectErrors(t, deliver(t, s, batchOf("a/3", "a/4")), sinks.ErrUnavailable, sinks.ErrNotAttempted)
			if n := asked.Load(); n < 1 || n > 2 {
				t.Errorf("sent %d times over used connections", n)
			}
		})
	}
}

// TestClosedForIdleness: if a receiver closes an idle connection just when a request comes, no message fails.
func TestClosedForIdleness(t *testing.T) {
	t.Parallel()
	var closeNext atomic.Bool
	rec := startReceiver(t, func(w *answer, _ *http.Request, _ got) {
		if closeNext.CompareAndSwap(true, false) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Close()
			w.status = 999
		}
	})
	s := newSink(t, Config{URL: rec.URL})
	expectErrors(t, deliver(t, s, batchOf("a/1")))
	closeNext.Store(true)
	expectErrors(t, deliver(t, s, batchOf("a/2", "a/3")))
	if got := rec.ids(); got != "a/1 a/2 a/3" {
		t.Errorf("received %q", got)
	}
}

// TestPoison: a message that crashes its receiver does not stop other messages. A receiver that crashes at every message is
// away.
func TestPoison(t *testing.T) {
	t.Parallel()
	var asked sync.Map
	rec := startReceiver(t, func(_ *answer, _ *http.Request, g got) {
		asked.Store(g.id(), true)
		if strings.HasPrefix(g.id(), "poison") {
			panic(http.ErrAbortHandler)
		}
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 1})
	u, n := sinks.ErrUnavailable, sinks.ErrNotAttempted
	expectErrors(t, deliver(t, s, batchOf("poison/1", "a/1", "poison/2", "b/1")), u, nil, n, nil)
	batch := batchOf("poison1/1", "poison2/1", "c/1", "poison3/1", "poison4/1", "poison5/1", "d/1", "e/1")
	expectErrors(t, deliver(t, s, batch), u, u, nil, u, u, u, u, u)
	for i := range batch {
		id := batch[i].Event.ID
		if _, was := asked.Load(id); was != (i <= 5) { // the third in a row that was lost is the last
			t.Errorf("%s was sent: %t", id, was)
		}
	}
}

// TestNobodyListens: one attempt to connect is enough to fail all messages.
func TestNobodyListens(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, nil)
	s := newSink(t, Config{URL: rec.URL, Connections: 1})
	expectErrors(t, deliver(t, s, batchOf("a/1")))
	rec.Close()
	errs := deliver(t, s, batchOf("a/1", "a/2", "b/1", "c/1"))
	expectErrors(t, errs, sinks.ErrUnavailable, sinks.ErrNotAttempted, sinks.ErrUnavailable, sinks.ErrUnavailable)
	if len(errs) == 4 && errs[2].Error() != errs[0].Error() {
		t.Errorf("it was tried again: %v", errs[2])
	}
	if !strings.Contains(errs[0].Error(), "connection refused") {
		t.Errorf("the error does not say what is the matter: %v", errs[0])
	}
}

// TestNoSuchHost: a destination whose name does not resolve is away.
func TestNoSuchHost(t *testing.T) {
	t.Parallel()
	s := newSink(t, Config{URL: "https://no-such-host.invalid/"})
	expectErrors(t, deliver(t, s, batchOf("a/1", "b/1")), sinks.ErrUnavailable, sinks.ErrUnavailable)
}

// TestNeverAnswers: Deliver ends when its context does, if the receiver accepts connections without answering, with and
// without TLS, and if it hangs at some of the messages.
func TestNeverAnswers(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp4", "127.0.0.1:0") // whose kernel accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			s := newSink(t, Config{URL: scheme + "://" + listener.Addr().String()})
			expectErrors(t, deliverFor(t, 200*time.Millisecond, s, batchOf("a/1", "a/2", "b/1")),
				sinks.ErrUnavailable, sinks.ErrNotAttempted, sinks.ErrUnavailable)
		})
	}
	t.Run("some", func(t *testing.T) {
		t.Parallel()
		rec := startReceiver(t, func(w *answer, r *http.Request, g got) {
			if strings.HasPrefix(g.id(), "hang") {
				<-r.Context().Done()
				w.status = 999
			}
		})
		s := newSink(t, Config{URL: rec.URL, Connections: 4})
		expectErrors(t, deliverFor(t, 2*time.Second, s, batchOf("hang/1", "a/1", "hang/2", "a/2", "b/1")),
			sinks.ErrUnavailable, nil, sinks.ErrNotAttempted, nil, nil)
	})
	t.Run("all connections", func(t *testing.T) { // the other lane waits for one, and not longer than it may
		t.Parallel()
		started := make(chan struct{}, 1)
		rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
			started <- struct{}{}
			<-r.Context().Done()
			w.status = 999
		})
		s := newSink(t, Config{URL: rec.URL, Connections: 1})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan []error)
		go func() { ended <- s.Deliver(ctx, batchOf("a/1")) }()
		<-started
		expectErrors(t, deliverFor(t, 100*time.Millisecond, s, batchOf("b/1", "b/2")), sinks.ErrNotAttempted, sinks.ErrNotAttempted)
		cancel()
		expectErrors(t, <-ended, sinks.ErrUnavailable)
	})
}

// deliverFor checks that Deliver returns not much later than its deadline.
func deliverFor(t *testing.T, timeout time.Duration, s *Sink, batch []sinks.Message) []error {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), timeout, errors.New("the lane's patience"))
	defer cancel()
	began := time.Now()
	errs := s.Deliver(ctx, batch)
	if took := time.Since(began); took > timeout+time.Second {
		t.Errorf("returned %s after its deadline", took-timeout)
	}
	if len(errs) > 0 && errs[0] != nil && !strings.Contains(errs[0].Error(), "the lane's patience") {
		t.Errorf("the error does not tell the cause: %v", errs[0])
	}
	return errs
}

// TestLargeAnswers: the body of an answer is not read for ever, and the status decides whatever the body is.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{}, 10)
	rec := startReceiver(t, func(w *answer, _ *http.Request, g got) {
		w.WriteHeader(map[bool]int{true: 400, false: 200}[g.id() == "b/1"])
		var err error
		for err == nil {
			_, err = w.Write([]byte(strings.Repeat(canary, 1000)))
		}
		ended <- struct{}{}
	})
	s := newSink(t, Config{URL: rec.URL})
	expectErrors(t, deliver(t, s, batchOf("a/1", "a/2", "b/1")), nil, nil, sinks.ErrPermanent)
	for range 3 {
		<-ended
	}
}

// TestConnectionsAreKept: a connection is used again if the body of its answer is not too long.
func TestConnectionsAreKept(t *testing.T) {
	t.Parallel()
	var opened atomic.Int32
	rec := newReceiver(func(w *answer, _ *http.Request, g got) {
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write([]byte(strings.Repeat("x", 60_000))) // if it fails, there is another connection
	})
	rec.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	rec.Start()
	t.Cleanup(rec.Close)
	s := newSink(t, Config{URL: rec.URL, Connections: 1})
	for range 20 {
		expectErrors(t, deliver(t, s, batchOf("a/1", "b/1", "a/2")))
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestSwitchingProtocols: after status 101 the connection stays open; Deliver must not wait for its end.
func TestSwitchingProtocols(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, func(w *answer, _ *http.Request, _ got) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { conn.Close() })
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"+canary) // else it hangs
		w.status = 999
	})
	s := newSink(t, Config{URL: rec.URL})
	expectErrors(t, deliver(t, s, batchOf("a/1", "a/2")), errRefused, sinks.ErrNotAttempted)
}

// TestAnswerBeforeTheEnd: a receiver may refuse a message as too large before it has read all of it.
func TestAnswerBeforeTheEnd(t *testing.T) {
	t.Parallel()
	rec := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 1<<20 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}
	}))
	t.Cleanup(rec.Close)
	s := newSink(t, Config{URL: rec.URL, Body: bodyRaw}) // an envelope of this size takes seconds to make with the race detector
	batch := batchOf("a/1", "a/2", "b/1")
	batch[0].Event.Payload = make([]byte, 16<<20)
	expectErrors(t, deliver(t, s, batch), sinks.ErrPermanent, sinks.ErrNotAttempted, nil)
}
