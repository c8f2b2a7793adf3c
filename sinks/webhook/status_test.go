package webhook

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// ranges are the statuses of which docs/sinks.md has the same table, with their class where topics do not differ, and where they
// do. Those that are not named are refused.
var ranges = []struct {
	from, to     int
	one, several error
}{
	{200, 299, nil, nil},
	{300, 399, sinks.ErrUnavailable, sinks.ErrTopicUnavailable},
	{400, 400, sinks.ErrPermanent, sinks.ErrPermanent},
	{401, 401, sinks.ErrUnavailable, sinks.ErrTopicUnavailable},
	{403, 405, sinks.ErrUnavailable, sinks.ErrTopicUnavailable},
	{407, 407, sinks.ErrUnavailable, sinks.ErrTopicUnavailable},
	{408, 408, sinks.ErrUnavailable, sinks.ErrUnavailable},
	{410, 410, sinks.ErrUnavailable, sinks.ErrTopicUnavailable},
	{413, 413, sinks.ErrPermanent, sinks.ErrPermanent},
	{414, 414, sinks.ErrUnavailable, sinks.ErrPermanent},
	{422, 422, sinks.ErrPermanent, sinks.ErrPermanent},
	{425, 425, sinks.ErrUnavailable, sinks.ErrUnavailable},
	{429, 429, sinks.ErrUnavailable, sinks.ErrUnavailable},
	{431, 431, sinks.ErrPermanent, sinks.ErrPermanent},
	{502, 504, sinks.ErrUnavailable, sinks.ErrUnavailable},
	{520, 527, sinks.ErrUnavailable, sinks.ErrUnavailable},
	{530, 530, sinks.ErrUnavailable, sinks.ErrUnavailable},
}

// TestStatuses checks the class of each status.
func TestStatuses(t *testing.T) {
	t.Parallel()
	for status := 101; status <= 999; status++ {
		one, several := errRefused, errRefused
		for _, r := range ranges {
			if status >= r.from && status <= r.to {
				one, several = r.one, r.several
			}
		}
		for topics, want := range []error{sinks.OneTopic: one, sinks.SeveralTopics: several} {
			v := judge(status, sinks.Topics(topics))
			if !isOf(v.err, want) || v.err != nil && !strings.Contains(v.err.Error(), fmt.Sprint("status ", status)) {
				t.Errorf("status %d, topics %d: %v, want %v", status, topics, v.err, want)
			}
			if sinks.IsThrottled(v.err) != (status == 429) {
				t.Errorf("status %d counts as throttled: %t", status, sinks.IsThrottled(v.err))
			}
		}
	}
}

// TestWhatAStatusStops checks which other messages are not sent after an answer. It uses one connection, so that it is certain
// which messages come after it.
func TestWhatAStatusStops(t *testing.T) {
	t.Parallel()
	p, u, r := sinks.ErrPermanent, sinks.ErrUnavailable, errRefused
	for status, class := range map[int]error{
		302: u, 304: u, 401: u, 403: u, 404: u, 405: u, 407: u, 410: u, 414: u, 429: u, 503: u, // all
		400: p, 408: u, 409: r, 422: p, 425: u, 500: r, 501: r, 502: u, 504: u, 520: u, 999: r, // none
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			elsewhere := startReceiver(t, nil)
			rec := startReceiver(t, func(w *answer, r *http.Request, g got) {
				if g.id() == "a/1" {
					w.Header().Set("Location", elsewhere.URL+"/"+canary)
					w.Header().Set("X-Echo", string(g.body))
					w.WriteHeader(status)
					if status != 304 {
						_, _ = w.Write(g.body) // if it has gone, so has the test
					}
				}
			})
			s := newSink(t, Config{URL: rec.URL, Connections: 1})
			errs := deliver(t, s, batchOf("a/1", "a/2", "b/1"))
			if refused := len(errs) > 0 && sinks.IsRefusedLogin(errs[0]); refused != (status == 401 || status == 403) {
				t.Errorf("marked as a refused login: %t: %v", refused, errs)
			}
			switch status {
			case 302, 304, 401, 403, 404, 405, 407, 410, 414, 429, 503:
				expectErrors(t, errs, class, sinks.ErrNotAttempted, u)
				if n := len(rec.requests()); n != 0 {
					t.Errorf("%d requests after it", n)
				}
			default:
				expectErrors(t, errs, class, sinks.ErrNotAttempted, nil)
			}
			if n := len(elsewhere.requests()); n != 0 {
				t.Error("a redirect was followed")
			}
		})
	}
}

// TestSeveralDoubts: a gateway that cannot reach the receiver is taken at its word when it says so three times in a row.
func TestSeveralDoubts(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, func(w *answer, _ *http.Request, g got) {
		if strings.HasPrefix(g.id(), "bad") {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	s := newSink(t, Config{URL: rec.URL, Connections: 1})
	u := sinks.ErrUnavailable
	expectErrors(t, deliver(t, s, batchOf("bad1/1", "bad2/1", "a/1", "bad3/1", "bad4/1", "b/1")), u, u, nil, u, u, nil)
	expectErrors(t, deliver(t, s, batchOf("bad1/1", "bad2/1", "bad3/1", "c/1")), u, u, u, u)
	if got := rec.ids(); got != "a/1 b/1" {
		t.Errorf("received %q", got)
	}
}

// TestRetryAfter: all lanes keep a pause that the receiver asks for, but not longer than configured. What is not sent because
// of it is no try.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	later := func() string { return "3600" }
	date := func(in time.Duration) func() string {
		return func() string { return time.Now().Add(in).UTC().Format(http.TimeFormat) }
	}
	text := func(s string) func() string { return func() string { return s } }
	u, r := sinks.ErrUnavailable, errRefused
	for name, c := range map[string]struct {
		status       int
		header       func() string
		class        error
		waits, pause bool // the message, and all messages
	}{
		"seconds":             {429, later, u, true, true},
		"more than there are": {503, text(strings.Repeat("9", 30)), u, true, true},
		"date":                {503, date(time.Hour), u, true, true},
		"past date":           {503, date(-time.Hour), u, false, false},
		"none":                {429, text(""), u, false, false},
		"zero":                {429, text("0"), u, false, false},
		"negative":            {429, text("-5"), u, false, false},
		"words":               {429, text(canary), u, false, false},
		"of another status":   {500, later, r, false, false},
		"of a redirect":       {302, later, u, true, false},
		"of a large message":  {413, later, r, true, false}, // too large for now
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
			expectErrors(t, errs, c.class)
			if len(errs) != 1 {
				return
			}
			if after := sinks.RetryAfter(errs[0]); (after > 0) != c.waits || after > time.Minute {
				t.Errorf("the message is told to wait %s", after)
			}
			until := s.pause.Load()
			if (until != nil) != c.pause {
				t.Fatalf("pause until %v", until)
			}
			if !c.pause {
				expectErrors(t, deliver(t, s, batchOf("a/1", "b/1")))
				return
			}
			if pause := time.Until(*until); pause <= 0 || pause > time.Minute {
				t.Errorf("a pause of %s", pause)
			}
			n := sinks.ErrNotAttempted
			errs = deliver(t, s, batchOf("a/1", "a/2", "b/1"))
			expectErrors(t, errs, n, n, n)
			if first, behind := sinks.RetryAfter(errs[0]), sinks.RetryAfter(errs[1]); first <= 0 || first > time.Minute || behind != 0 {
				t.Errorf("due in %s, and what is behind it in %s", first, behind)
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("%d requests during the pause", n-1)
			}
			over := time.Now()
			s.pause.Store(&over)
			expectErrors(t, deliver(t, s, batchOf("a/1", "b/1")))
		})
	}
}
