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

// maxAnswer is the most bytes that are read of the headers of an answer, and of its body. If an answer is longer, the
// connection is closed.
const maxAnswer = 64 << 10

// maxAnswerTime is how long the body of an answer is read after its headers have arrived.
const maxAnswerTime = time.Second

// Sink posts to one receiver. The receiver need not be there when the Sink is made.
type Sink struct {
	settings
	body        string
	cloudEvents format.CloudEvents
	base        http.Request // the parts that all requests have in common
	transport   *http.Transport
	limiter     *rate.Limiter // nil if there is no limit

	// slots holds as many slots as there may be requests under way. A worker that has taken one may send a request.
	slots chan *slot
	known known
	// running counts the calls of Deliver that run now, and most is the highest value of it so far. So many share the
	// connections.
	running, most atomic.Int32
	// pause is the last pause that the receiver has asked for.
	pause atomic.Pointer[pause]
}

type pause struct {
	until time.Time
	err   error
}

// New checks the configuration. Its error names each mistake. Only Deliver makes connections.
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
		burst := max(1, int(c.Rate/20)) // after a delay, the requests of a twentieth of a second may be sent at once
		s.limiter = rate.NewLimiter(rate.Limit(c.Rate), burst)
	}
	s.slots = make(chan *slot, s.connections)
	for range s.connections {
		s.slots <- newSlot(s.keys)
	}
	return s, nil
}

// Deliver implements sinks.Sink. It waits for the goroutines that it starts.
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

// share returns how many connections a Deliver begins with.
func (s *Sink) share() int { return max(1, s.connections/int(s.most.Load())) }

// Close closes all connections.
func (s *Sink) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// paused returns an error if no request may be sent now, because the receiver has asked for a pause.
func (s *Sink) paused() error {
	if p := s.pause.Load(); p != nil {
		if wait := time.Until(p.until); wait > 0 {
			return sinks.After(wait, p.err)
		}
	}
	return nil
}

// send sends one request and judges the answer. net/http may still be writing the request after it has returned an
// error, so the request must not refer to memory that is used again.
func (s *Sink) send(ctx context.Context, request *http.Request) verdict {
	answer, err := s.transport.RoundTrip(request)
	if err != nil {
		return judgeError(ctx, err)
	}
	// The status decides. If something goes wrong with the body, that only costs the connection. The body of an answer
	// with status 101 is not read: it never ends, not even when ctx does.
	if answer.StatusCode != http.StatusSwitchingProtocols && answer.Body != http.NoBody {
		late := time.AfterFunc(maxAnswerTime, func() { _ = answer.Body.Close() }) // closes the connection while it is read
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

// path returns the URL that a topic leads to: the topic itself if it is a URL, and otherwise "", which stands for the
// sink's own URL.
func (s *Sink) path(topic string) string {
	if !isURL(topic) {
		return ""
	}
	return topic
}

// target returns the URL to which a message with this topic is sent.
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

// isURL reports whether a topic is a URL.
func isURL(topic string) bool {
	return strings.HasPrefix(topic, "https://") || strings.HasPrefix(topic, "http://")
}

func isSameHost(a, b *url.URL) bool {
	return strings.EqualFold(a.Hostname(), b.Hostname()) && portOf(a) == portOf(b)
}
