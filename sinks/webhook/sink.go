package webhook

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// maxAnswer is how many bytes of an answer's headers, and again of its body, are read. A connection whose answer is
// longer is closed.
const maxAnswer = 64 << 10

// maxAnswerTime is for the body, behind the headers.
const maxAnswerTime = time.Second

// Sink posts to one receiver, which need not be up when it is made.
type Sink struct {
	settings
	body        string
	cloudEvents format.CloudEvents
	base        http.Request // what all requests share
	transport   *http.Transport
	limiter     *rate.Limiter // nil: none

	// slots are as many as there may be requests under way. Who has taken one may send one.
	slots chan *slot
	known known
	// running Delivers, now and at most so far: as many share the connections.
	running, most atomic.Int32
	// pause is what a receiver has asked for.
	pause atomic.Pointer[pause]
}

type pause struct {
	until time.Time
	err   error
}

// New checks the configuration, and its error names each mistake. Connections are made by Deliver.
func New(c Config) (*Sink, error) {
	checked, err := c.check()
	if err != nil {
		return nil, err
	}
	s := &Sink{settings: checked, body: c.bodyName(), cloudEvents: format.CloudEvents{Source: c.Source}}
	if s.headers.Get("User-Agent") == "" {
		s.headers.Set("User-Agent", "outbox-cdc")
	}
	s.base = http.Request{
		Method: http.MethodPost, URL: s.url, Host: s.url.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	s.transport = newTransport(&s.settings, c.TLS)
	if c.Rate > 0 {
		burst := max(1, int(c.Rate/20)) // what may be made good of a moment's delay
		s.limiter = rate.NewLimiter(rate.Limit(c.Rate), burst)
	}
	s.slots = make(chan *slot, s.connections)
	for range s.connections {
		s.slots <- newSlot(s.keys)
	}
	return s, nil
}

// Deliver implements sinks.Sink. Its goroutines end before it does.
func (s *Sink) Deliver(ctx context.Context, batch []sinks.Message) []error {
	if len(batch) == 0 {
		return nil
	}
	running := s.running.Add(1)
	defer s.running.Add(-1)
	for most := s.most.Load(); running > most && !s.most.CompareAndSwap(most, running); most = s.most.Load() {
	}
	return newDelivery(s, batch).run(ctx)
}

// share is how many connections a Deliver begins with.
func (s *Sink) share() int { return max(1, s.connections/int(s.most.Load())) }

// Close closes all connections.
func (s *Sink) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// paused returns the error of a request that is not sent because the receiver has asked for a pause.
func (s *Sink) paused() error {
	if p := s.pause.Load(); p != nil {
		if wait := time.Until(p.until); wait > 0 {
			return sinks.After(wait, p.err)
		}
	}
	return nil
}

// send has one request answered. Nothing of the request is in use by net/http that is not the request's own, as it may
// still be writing when it has returned an error.
func (s *Sink) send(ctx context.Context, request *http.Request) verdict {
	answer, err := s.transport.RoundTrip(request)
	if err != nil {
		return judgeError(ctx, err)
	}
	// The status has decided. What goes wrong with the body costs a connection. That of 101 never ends, not even with ctx.
	if answer.StatusCode != http.StatusSwitchingProtocols && answer.Body != http.NoBody {
		late := time.AfterFunc(maxAnswerTime, func() { _ = answer.Body.Close() }) // the connection, under the read
		_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer)
		late.Stop()
	}
	_ = answer.Body.Close()
	v := judge(answer.StatusCode)
	now := time.Now()
	if wait := min(retryAfter(answer, now), s.maxRetryAfter); wait > 0 {
		s.pause.Store(&pause{
			until: now.Add(wait),
			err:   fmt.Errorf("%w: status %d asked for a pause of %s", sinks.ErrUnavailable, answer.StatusCode, wait),
		})
		v.err = sinks.After(wait, v.err)
	}
	return v
}

// path is what of a topic makes a difference: one that is no URL leads to the sink's own.
func (s *Sink) path(topic string) string {
	if !isURL(topic) {
		return ""
	}
	return topic
}

// target is where a message goes.
func (s *Sink) target(topic string) (*url.URL, error) {
	if !isURL(topic) {
		return s.url, nil
	}
	u, err := url.Parse(topic)
	if err != nil {
		return nil, fmt.Errorf("%w: the URL of its route cannot be parsed", sinks.ErrPermanent)
	}
	if u.Scheme != s.url.Scheme || !isSameHost(u, s.url) || u.User != nil {
		return nil, fmt.Errorf("%w: the URL of its route is of another host than the sink's, or has a user", sinks.ErrPermanent)
	}
	if !keepsItsPath(u.EscapedPath()) {
		return nil, fmt.Errorf("%w: a field's value cannot be part of the path of its route's URL: a segment would be empty or dots alone, "+
			"or hold another character than letters, digits, spaces and -._~!$&'()*+,=:@", sinks.ErrPermanent)
	}
	u.Fragment, u.RawFragment = "", ""
	u.Host = s.url.Host
	return u, nil
}

// isURL tells a topic that is a URL from one that only names something.
func isURL(topic string) bool {
	return strings.HasPrefix(topic, "https://") || strings.HasPrefix(topic, "http://")
}

func isSameHost(a, b *url.URL) bool {
	return strings.EqualFold(a.Hostname(), b.Hostname()) && portOf(a) == portOf(b)
}
