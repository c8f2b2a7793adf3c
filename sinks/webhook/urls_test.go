package webhook

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// to gives messages the topic that is this path of the receiver.
func to(rec *receiver, path string, batch []sinks.Message) []sinks.Message {
	for i := range batch {
		batch[i].Topic = rec.URL + path
	}
	return batch
}

// expectPutOff checks that an error puts a message off for this long at most.
func expectPutOff(t *testing.T, err error, longest time.Duration) {
	t.Helper()
	if wait := sinks.RetryAfter(err); !errors.Is(err, sinks.ErrNotAttempted) || wait <= 0 || wait > longest {
		t.Errorf("want that it is put off for %s at most, got %s: %v", longest, wait, err)
	}
}

// TestOneURLOfSeveralAway: if one path is missing, messages to others are delivered. The path is not asked again before its time.
func TestOneURLOfSeveralAway(t *testing.T) {
	t.Parallel()
	for _, status := range []int{302, 401, 403, 404, 405, 407, 410, 429, 503} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			var missing atomic.Int32
			rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
				if r.URL.Path == "/missing" {
					missing.Add(1)
					w.WriteHeader(status)
				}
			})
			s := newSink(t, Config{URL: rec.URL, Connections: 1, Topics: sinks.SeveralTopics})
			batch := batchOf("a/1", "a/2", "b/1", "c/1", "c/2", "d/1")
			for _, i := range []int{0, 1, 3, 4} {
				batch[i].Topic = rec.URL + "/missing"
			}
			class, n := sinks.ErrTopicUnavailable, sinks.ErrNotAttempted
			if status == 429 || status == 503 {
				class = sinks.ErrUnavailable
			}
			errs := deliver(t, s, batch)
			expectErrors(t, errs, class, n, nil, n, n, nil)
			expectPutOff(t, errs[3], time.Second)
			errs = deliver(t, s, to(rec, "/missing", batchOf("a/1", "e/1")))
			expectErrors(t, errs, n, n)
			expectPutOff(t, errs[0], time.Second)
			if got := missing.Load(); got != 1 {
				t.Errorf("it was asked %d times", got)
			}
		})
	}
}

// TestManyURLsAway: if several URLs in a row cannot be reached, the destination is away.
func TestManyURLsAway(t *testing.T) {
	t.Parallel()
	for _, status := range []int{429, 502, 503} {
		var asked atomic.Int32
		rec := startReceiver(t, func(w *answer, _ *http.Request, _ got) {
			asked.Add(1)
			w.WriteHeader(status)
		})
		s := newSink(t, Config{URL: rec.URL, Connections: 1, Topics: sinks.SeveralTopics})
		batch := batchOf("a/1", "b/1", "c/1", "d/1", "e/1")
		for i := range batch {
			batch[i].Topic = rec.URL + "/" + batch[i].Event.AggregateID
		}
		u := sinks.ErrUnavailable
		expectErrors(t, deliver(t, s, batch), u, u, u, u, u)
		if n := asked.Load(); n != maxDoubts {
			t.Errorf("status %d: asked %d times, want %d", status, n, maxDoubts)
		}
	}
}

// TestURLThatHangs: a URL that does not answer, while others do, takes up one connection at most from then on.
func TestURLThatHangs(t *testing.T) {
	t.Parallel()
	var hanging, most, healed atomic.Int32
	rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
		if r.URL.Path == "/hangs" && healed.Load() == 0 {
			if n := hanging.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-r.Context().Done()
			hanging.Add(-1)
			w.status = 999
		}
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 4, Topics: sinks.SeveralTopics})
	patient := func(timeout time.Duration, batch []sinks.Message) []error {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		return s.Deliver(ctx, batch)
	}
	gone, n := sinks.ErrTopicUnavailable, sinks.ErrNotAttempted
	expectErrors(t, patient(time.Second, append(batchOf("x/1", "y/1"), to(rec, "/hangs", batchOf("a/1", "b/1", "b/2"))...)), nil, nil, gone, gone, n)
	errs := patient(20*time.Second, append(to(rec, "/hangs", batchOf("a/1", "b/1")), batchOf("x/2")...))
	expectErrors(t, errs, n, n, nil)
	expectPutOff(t, errs[0], time.Second)
	over(t, s, rec.URL+"/hangs")
	most.Store(0)
	hung := make(chan []error, 1)
	go func() { hung <- patient(2*time.Second, to(rec, "/hangs", batchOf("a/1", "b/1", "c/1", "d/1"))) }()
	var batch []sinks.Message
	for len(hung) == 0 { // another lane has answers meanwhile
		batch = batchOf("x/3", "y/3", "z/3")
		expectErrors(t, deliver(t, s, batch))
	}
	asked := 0
	for _, err := range <-hung {
		if errors.Is(err, sinks.ErrTopicUnavailable) {
			asked++
		} else {
			expectPutOff(t, err, time.Second)
		}
	}
	if asked != 1 || most.Load() != 1 {
		t.Errorf("%d messages asked, %d at a time", asked, most.Load())
	}
	healed.Store(1)
	over(t, s, rec.URL+"/hangs")
	expectErrors(t, patient(20*time.Second, to(rec, "/hangs", batchOf("a/1", "a/2"))))
	expectErrors(t, patient(20*time.Second, to(rec, "/hangs", batchOf("b/1", "c/1", "d/1"))))
}

// over waits until a URL that was found away may be asked again.
func over(t *testing.T, s *Sink, url string) {
	t.Helper()
	for wait := s.urls.away.Wait(url, time.Now()); wait > 0; wait = s.urls.away.Wait(url, time.Now()) {
		if wait > 10*time.Second {
			t.Fatalf("it is asked again in %s", wait)
		}
		<-time.After(wait)
	}
}

// TestNothingAnswers: if no URL answers, the destination is away, and no URL is remembered for it.
func TestNothingAnswers(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
		<-r.Context().Done()
		w.status = 999
	})
	s := newSink(t, Config{URL: rec.URL, Topics: sinks.SeveralTopics})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	u := sinks.ErrUnavailable
	expectErrors(t, s.Deliver(ctx, append(to(rec, "/a", batchOf("a/1")), to(rec, "/b", batchOf("b/1"))...)), u, u)
	if wait := s.urls.away.Wait(rec.URL+"/a", time.Now()); wait != 0 {
		t.Errorf("the URL is put off for %s", wait)
	}
}

// TestCancelledSaysNothingOfAURL: if the connector ends a call early, a URL that has not answered yet is not away.
func TestCancelledSaysNothingOfAURL(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
		if r.URL.Path == "/slow" {
			close(started)
			<-r.Context().Done()
			w.status = 999
		}
	})
	s := newSink(t, Config{URL: rec.URL, Topics: sinks.SeveralTopics})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan []error, 1)
	go func() { ended <- s.Deliver(ctx, to(rec, "/slow", batchOf("a/1"))) }()
	<-started
	expectErrors(t, deliver(t, s, to(rec, "/quick", batchOf("b/1"))))
	cancel()
	expectErrors(t, <-ended, sinks.ErrUnavailable)
	if wait := s.urls.away.Wait(rec.URL+"/slow", time.Now()); wait != 0 {
		t.Errorf("the URL is put off for %s", wait)
	}
}

// TestMessageThatHangs: if a URL answers other messages, one that it does not answer says nothing about the URL.
func TestMessageThatHangs(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	var once sync.Once
	rec := startReceiver(t, func(w *answer, r *http.Request, g got) {
		if strings.HasPrefix(g.id(), "hang") {
			once.Do(func() { close(started) })
			<-r.Context().Done()
			w.status = 999
		}
	})
	s := newSink(t, Config{URL: rec.URL, Topics: sinks.SeveralTopics})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	hung := make(chan []error, 1)
	go func() { hung <- s.Deliver(ctx, to(rec, "/a", batchOf("hang/1"))) }()
	<-started
	expectErrors(t, deliver(t, s, append(to(rec, "/a", batchOf("a/1")), to(rec, "/b", batchOf("b/1"))...)))
	expectErrors(t, <-hung, sinks.ErrUnavailable)
	expectErrors(t, deliver(t, s, to(rec, "/a", batchOf("a/2"))))
	if n := len(s.urls.underWay); n != 0 {
		t.Errorf("%d URLs with requests under way", n)
	}
}

// TestAURLThatNeverAnsweredLeavesConnections: the first messages of all are those of a URL that hangs, and they would take all connections. The
// others behind them are delivered all the same, and the sink learns that only this URL is away.
func TestAURLThatNeverAnsweredLeavesConnections(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, func(w *answer, r *http.Request, _ got) {
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
			w.status = 999
		}
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 4, Topics: sinks.SeveralTopics})
	batch := to(rec, "/hang", batchOf("h1/1", "h2/1", "h3/1", "h4/1", "h5/1", "h6/1"))
	batch = append(batch, to(rec, "/good", batchOf("a/1", "b/1"))...)
	errs := deliverFor(t, 300*time.Millisecond, s, batch)
	expectErrors(t, errs[6:], nil, nil)
	expectErrors(t, errs[:1], sinks.ErrTopicUnavailable)
}
