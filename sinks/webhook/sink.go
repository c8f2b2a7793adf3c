package webhook

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// Sink posts to one receiver. The receiver need not be there when the Sink is made.
type Sink struct {
	settings
	body        string
	topics      sinks.Topics
	secrets     []string // what must not come back with an answer, in all spellings; the longest first
	cloudEvents format.CloudEvents
	base        http.Request // the parts that all requests have in common
	transport   *http.Transport
	limiter     *rate.Limiter // nil if there is no limit

	// slots holds as many slots as there may be requests under way. A worker that has taken one may send a request.
	slots chan *slot
	known known
	urls  urls
	// running counts the calls of Deliver that run now, and most is the highest value of it so far. So many share the
	// connections.
	running, most atomic.Int32
	// pause is until when the receiver has asked not to be sent anything.
	pause atomic.Pointer[time.Time]
}

// New checks the configuration. Its error names each mistake. Only Deliver makes connections.
func New(c Config) (*Sink, error) {
	checked, err := c.check()
	if err != nil {
		return nil, err
	}
	s := &Sink{settings: checked, body: c.bodyName(), topics: c.Topics, secrets: secretsOf(&c, &checked), cloudEvents: format.CloudEvents{Source: c.Source, DataContentType: c.ContentType}}
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

var errPaused = fmt.Errorf("%w: the receiver has asked for a pause", sinks.ErrNotAttempted)

// paused returns an error if no request may be sent now, because the receiver has asked for a pause.
func (s *Sink) paused() error {
	if until := s.pause.Load(); until != nil {
		if wait := time.Until(*until); wait > 0 {
			return sinks.After(wait, errPaused)
		}
	}
	return nil
}

// send sends one request and judges the answer. net/http may still be writing the request after it has returned an
// error, so the request must not refer to memory that is used again.
func (s *Sink) send(ctx context.Context, request *http.Request, payload []byte) verdict {
	answer, err := s.transport.RoundTrip(request)
	if err != nil {
		return judgeError(ctx, err)
	}
	v := judge(answer.StatusCode, s.topics)
	v.answered = true
	text := readBody(answer)
	if v.err == nil {
		return v
	}
	now := time.Now()
	v.heed(answer, now, s.maxRetryAfter)
	if v.pause > 0 {
		until := now.Add(v.pause)
		s.pause.Store(&until)
	}
	v.err = sinks.WithAnswer(s.masked(text, request, payload), v.err)
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

// AskNow implements sinks.Rememberer. A pause that the receiver has asked for stays.
func (s *Sink) AskNow() { s.urls.away.AskNow() }
