package webhook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// TestConnectionsAreCapped: four lanes use all allowed connections, and no more.
func TestConnectionsAreCapped(t *testing.T) {
	t.Parallel()
	const connections, lanes = 3, 4
	var open, mostOpen, under, most atomic.Int32
	highest := func(of *atomic.Int32, n int32) {
		for old := of.Load(); n > old && !of.CompareAndSwap(old, n); old = of.Load() {
		}
	}
	full := make(chan struct{}) // once as many requests were under way as may be
	var fullOnce sync.Once
	rec := newReceiver(func(_ *answer, r *http.Request, _ got) {
		n := under.Add(1)
		defer under.Add(-1)
		highest(&most, n)
		if n == connections {
			fullOnce.Do(func() { close(full) })
		}
		select {
		case <-full:
		case <-r.Context().Done():
		}
	})
	rec.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			highest(&mostOpen, open.Add(1))
		case http.StateClosed:
			open.Add(-1)
		}
	}
	rec.Start()
	t.Cleanup(rec.Close)
	s := newSink(t, Config{URL: rec.URL, Connections: connections})
	var wg sync.WaitGroup
	for lane := range lanes {
		var words []string
		for i := range 60 {
			words = append(words, fmt.Sprintf("lane%d-%d/%d", lane, i%20, i))
		}
		wg.Go(func() { expectErrors(t, deliver(t, s, batchOf(words...))) })
	}
	wg.Wait()
	if most.Load() != connections || mostOpen.Load() != connections || len(rec.requests()) != 60*lanes {
		t.Errorf("%d requests at a time, %d connections, %d requests", most.Load(), mostOpen.Load(), len(rec.requests()))
	}
}

// TestRateIsCapped: after a first burst, the rate limits requests.
func TestRateIsCapped(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, nil)
	s := newSink(t, Config{URL: rec.URL, Rate: 60}) // bursts of 3
	began := time.Now()
	expectErrors(t, deliver(t, s, batchOf("a/1", "b/1", "c/1", "d/1", "e/1", "f/1", "g/1", "h/1", "i/1")))
	if took := time.Since(began); took < 6*time.Second/60 {
		t.Errorf("9 requests at 60/s took %s", took)
	}
}

// TestRateLeavesNoTurn: Deliver does not wait for a turn that comes only after its deadline.
func TestRateLeavesNoTurn(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, nil)
	s := newSink(t, Config{URL: rec.URL, Rate: 0.01})
	errs := deliver(t, s, batchOf("a/1", "a/2", "a/3"))
	expectErrors(t, errs, nil, sinks.ErrNotAttempted, sinks.ErrNotAttempted)
	if len(errs) == 3 && !errors.Is(errs[1], errNoTurn) {
		t.Error(errs[1])
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	expectErrors(t, s.Deliver(ctx, batchOf("b/1")), sinks.ErrNotAttempted)
	if got := rec.ids(); got != "a/1" {
		t.Errorf("received %q", got)
	}
}

// TestLittleTimeLeft: no request is begun if the time that is left is shorter than the last answer took.
func TestLittleTimeLeft(t *testing.T) {
	t.Parallel()
	s := newSink(t, Config{URL: "http://127.0.0.1:1"})
	batch := batchOf("a/1")
	d := newDelivery(s, batch)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for took, want := range map[time.Duration]error{0: nil, 30 * time.Minute: nil, 2 * time.Hour: sinks.ErrNotAttempted} {
		d.took.Store(int64(took))
		if err := d.mayBegin(ctx, ""); !isOf(err, want) {
			t.Errorf("answers take %s: %v", took, err)
		}
	}
}

// TestAggregatesGoSideBySide: while a message waits for its answer, only its own aggregate waits.
func TestAggregatesGoSideBySide(t *testing.T) {
	t.Parallel()
	others := make(chan struct{}, 3)
	rec := startReceiver(t, func(_ *answer, r *http.Request, g got) {
		if g.id() != "a/1" {
			others <- struct{}{}
			return
		}
		for range cap(others) {
			select {
			case <-others:
			case <-r.Context().Done():
			}
		}
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 2})
	expectErrors(t, deliver(t, s, batchOf("a/1", "b/1", "b/2", "c/1")))
}

// TestShareOfConnections: messages that are never answered leave connections for other lanes, as soon as the number of lanes
// is known.
func TestShareOfConnections(t *testing.T) {
	t.Parallel()
	var hanging atomic.Int32
	rec := startReceiver(t, func(w *answer, r *http.Request, g got) {
		if strings.HasPrefix(g.id(), "hang") {
			hanging.Add(1)
			<-r.Context().Done()
			w.status = 999
		}
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 4})
	s.most.Store(2)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan []error)
	go func() { ended <- s.Deliver(ctx, batchOf("hang1/1", "hang2/1", "hang3/1", "hang3/2", "hang4/1")) }()
	for hanging.Load() < 2 {
		runtime.Gosched()
	}
	expectErrors(t, deliver(t, s, batchOf("a/1", "b/1", "c/1", "d/1")))
	cancel()
	u, n := sinks.ErrUnavailable, sinks.ErrNotAttempted
	expectErrors(t, <-ended, u, u, n, n, n)
	if n := hanging.Load(); n != 2 {
		t.Errorf("%d of the connections were taken by messages without an answer, want half of them", n)
	}
}

// TestKnownGoFirst: an aggregate of which a message was accepted before does not wait for messages that are never answered.
func TestKnownGoFirst(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, func(w *answer, r *http.Request, g got) {
		if strings.HasPrefix(g.id(), "hang") {
			<-r.Context().Done()
			w.status = 999
		}
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 2})
	expectErrors(t, deliver(t, s, batchOf("a/1")))
	u, n := sinks.ErrUnavailable, sinks.ErrNotAttempted
	expectErrors(t, deliverFor(t, 300*time.Millisecond, s, batchOf("hang1/1", "hang2/1", "hang3/1", "a/2", "b/1", "a/3")), u, u, n, nil, n, nil)
	for i := range 3 * maxKnown {
		s.known.add(sinks.Aggregate{ID: fmt.Sprint(i)})
	}
	if len(s.known.now)+len(s.known.was) > 2*maxKnown {
		t.Error("it remembers all")
	}
}

// TestNothingIsLeft runs alone, because it counts goroutines.
func TestNothingIsLeft(t *testing.T) {
	before := goleak.IgnoreCurrent()
	hang := make(chan struct{})
	rec := newReceiver(func(_ *answer, r *http.Request, g got) {
		if g.id() == "hang/1" {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		}
	})
	rec.Start()
	s, err := New(Config{URL: rec.URL, AllowHosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	expectErrors(t, deliver(t, s, batchOf("a/1", "b/1", "c/1")))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	expectErrors(t, s.Deliver(ctx, batchOf("hang/1", "hang/2")), sinks.ErrUnavailable, sinks.ErrNotAttempted)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	close(hang)
	rec.Close()
	goleak.VerifyNone(t, before)
}
