package webhook

import (
	"context"
	"errors"
	"fmt"
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
	for _, c := range []error{sinks.ErrPermanent, sinks.ErrUnavailable, sinks.ErrNotAttempted} {
		if errors.Is(err, c) {
			is = c
		}
	}
	return is == class //nolint:errorlint // it is one of these four
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

// TestStatuses checks the class of each status, and which other messages get it too. It uses one connection, so that it is
// certain which messages come after the answer.
func TestStatuses(t *testing.T) {
	t.Parallel()
	p, u, r := sinks.ErrPermanent, sinks.ErrUnavailable, errRefused
	for status, class := range map[int]error{
		200: nil, 201: nil, 202: nil, 204: nil, 299: nil,
		301: r, 302: r, 304: r, 307: r, 308: r,
		400: p, 413: p, 422: p,
		401: u, 403: u, 404: u, 407: u, 410: u, 429: u, 502: u, 503: u, 504: u,
		402: r, 405: r, 406: r, 408: r, 409: r, 411: r, 414: r, 415: r, 418: r, 425: r, 431: r, 451: r, 500: r, 501: r, 505: r, 511: r, 599: r, 999: r,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			elsewhere := startReceiver(t, nil)
			rec := startReceiver(t, func(w *answer, r *http.Request, g got) {
				if g.id() == "a/1" {
					w.Header().Set("Location", elsewhere.URL+"/"+canary)
					w.Header().Set("X-Echo", string(g.body))
					w.WriteHeader(status)
					if status != 204 && status != 304 {
						_, _ = w.Write(g.body) // if it has gone, so has the test
					}
				}
			})
			s := newSink(t, Config{URL: rec.URL, Connections: 1})
			errs := deliver(t, s, batchOf("a/1", "a/2", "b/1"))
			switch status {
			case 401, 403, 404, 407, 410, 429, 502, 503, 504:
				expectErrors(t, errs, u, sinks.ErrNotAttempted, u)
				if n := len(rec.requests()); n != 0 {
					t.Errorf("%d requests after it", n)
				}
			default:
				if class == nil {
					expectErrors(t, errs)
					break
				}
				expectErrors(t, errs, class, sinks.ErrNotAttempted, nil)
			}
			if class != nil && !strings.Contains(errs[0].Error(), fmt.Sprintf("status %d", status)) {
				t.Errorf("the error does not tell the status: %v", errs[0])
			}
			if n := len(elsewhere.requests()); n != 0 {
				t.Error("a redirect was followed")
			}
		})
	}
}

// TestOnePathAway: if one path is missing, messages to others are delivered.
func TestOnePathAway(t *testing.T) {
	t.Parallel()
	var missing atomic.Int32
	rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
		if r.URL.Path == "/missing" {
			missing.Add(1)
			w.WriteHeader(http.StatusNotFound)
		}
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 1})
	batch := batchOf("a/1", "a/2", "b/1", "c/1", "c/2", "d/1")
	for _, i := range []int{0, 1, 3, 4} {
		batch[i].Topic = rec.URL + "/missing"
	}
	u, n := sinks.ErrUnavailable, sinks.ErrNotAttempted
	expectErrors(t, deliver(t, s, batch), u, n, nil, u, n, nil)
	if got := missing.Load(); got != 1 {
		t.Errorf("it was asked %d times", got)
	}
}

// TestRetryAfter: all lanes keep a pause that the receiver asks for, but not longer than configured.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		header func() string
		kept   bool
	}{
		"seconds":             {429, func() string { return "3600" }, true},
		"more than there are": {503, func() string { return strings.Repeat("9", 30) }, true},
		"date":                {503, func() string { return time.Now().Add(time.Hour).UTC().Format(http.TimeFormat) }, true},
		"past date":           {503, func() string { return time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat) }, false},
		"none":                {429, func() string { return "" }, false},
		"zero":                {429, func() string { return "0" }, false},
		"negative":            {429, func() string { return "-5" }, false},
		"words":               {429, func() string { return canary }, false},
		"of another status":   {500, func() string { return "3600" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			rec := startReceiver(t, func(w *answer, _ *http.Request, _ got) {
				if asked.Add(1) == 1 {
					if text := c.header(); text != "" {
						w.Header().Set("Retry-After", text)
					}
					w.WriteHeader(c.status)
				}
			})
			s := newSink(t, Config{URL: rec.URL, MaxRetryAfter: time.Minute})
			errs := deliver(t, s, batchOf("a/1"))
			if len(errs) != 1 || errs[0] == nil {
				t.Fatalf("got %v", errs)
			}
			if after := sinks.RetryAfter(errs[0]); (after > 0) != c.kept || after > time.Minute {
				t.Errorf("the message is told to wait %s", after)
			}
			pause := s.pause.Load()
			if (pause != nil) != c.kept {
				t.Fatalf("pause %v", pause)
			}
			if !c.kept {
				expectErrors(t, deliver(t, s, batchOf("a/1", "b/1")))
				return
			}
			if until := time.Until(pause.until); until <= 0 || until > time.Minute {
				t.Errorf("a pause of %s", until)
			}
			expectErrors(t, deliver(t, s, batchOf("a/1", "a/2", "b/1")), sinks.ErrUnavailable, sinks.ErrNotAttempted, sinks.ErrUnavailable)
			if n := asked.Load(); n != 1 {
				t.Errorf("%d requests during the pause", n-1)
			}
			pause.until = time.Now() // it is over
			expectErrors(t, deliver(t, s, batchOf("a/1", "b/1")))
		})
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
	s := newSink(t, Config{URL: rec.URL})
	batch := batchOf("a/1", "a/2", "b/1")
	batch[0].Event.Payload = make([]byte, 16<<20)
	expectErrors(t, deliver(t, s, batch), sinks.ErrPermanent, sinks.ErrNotAttempted, nil)
}
