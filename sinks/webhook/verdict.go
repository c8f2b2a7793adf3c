package webhook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// reach says for which other messages an answer, or its absence, means that they would not be accepted now.
type reach byte

const (
	thisMessage reach = iota // for none
	thisURL                  // for those of the same URL: it does not exist, takes no POST, or there is no right to it
	perhaps                  // for all, if it happens to several in a row: one message can make a receiver crash, and its gateway say so
	likely                   // for all, unless topics differ; then for those of the same URL, and for all if several URLs say so in a row
	everything               // for all
)

// verdict says what became of a request. Without an error the message was accepted.
type verdict struct {
	err      error
	reach    reach
	answered bool
	pause    time.Duration // the receiver asks for a pause of all messages
}

// errLost replaces errors of net/http that may quote an answer which is not HTTP.
var errLost = errors.New("the connection ended without a sound answer; it may have been accepted")

// judge turns a status into a verdict. The error has a text of our own, because that of the receiver may contain anything.
// docs/sinks.md has the table.
func judge(status int, topics sinks.Topics) verdict {
	if status >= 200 && status < 300 {
		return verdict{}
	}
	text := fmt.Sprint("status ", status)
	if known := http.StatusText(status); known != "" {
		text += " " + known
	}
	permanent := func() verdict { return verdict{err: fmt.Errorf("%w: %s", sinks.ErrPermanent, text)} }
	away := func(r reach) verdict {
		return verdict{err: fmt.Errorf("%w: %s", sinks.ErrUnavailable, text), reach: r}
	}
	urlAway := func(remedy string) verdict {
		return verdict{err: fmt.Errorf("%w: %s; %s", topics.Unavailable(), text, remedy), reach: thisURL}
	}
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusRequestHeaderFieldsTooLarge:
		return permanent()
	case http.StatusRequestURITooLong:
		if topics == sinks.SeveralTopics { // otherwise each message has the same URL, and it is no fault of this one
			return permanent()
		}
		return urlAway("shorten url")
	case http.StatusUnauthorized, http.StatusForbidden:
		v := urlAway("check secrets and headers")
		v.err = sinks.RefusedLogin(v.err)
		return v
	case http.StatusNotFound, http.StatusGone:
		return urlAway("check url")
	case http.StatusMethodNotAllowed:
		return urlAway("this URL takes no POST; check url")
	case http.StatusProxyAuthRequired:
		return urlAway("a proxy before the receiver asks for credentials; check headers")
	case http.StatusTooManyRequests:
		v := away(likely)
		v.err = sinks.Throttled(v.err)
		return v
	case http.StatusServiceUnavailable:
		return away(likely)
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusBadGateway, http.StatusGatewayTimeout,
		520, 521, 522, 523, 524, 525, 526, 527, 530: // Cloudflare's, for what is wrong between it and the receiver
		return away(perhaps)
	}
	if status >= 300 && status < 400 {
		return urlAway("redirects are not followed; set url to where it leads")
	}
	return verdict{err: errors.New(text)}
}

// judgeError returns the verdict for a request that was not answered.
func judgeError(ctx context.Context, err error) verdict {
	unavailable := func(cause error) error { return fmt.Errorf("%w: %w", sinks.ErrUnavailable, cause) }
	var dial *dialError
	var op *net.OpError
	switch {
	case ctx.Err() != nil:
		return verdict{err: unavailable(errNoAnswer(ctx)), reach: everything}
	case errors.As(err, &dial):
		return verdict{err: unavailable(dial), reach: everything}
	case errors.As(err, &op) && op.Op == "remote error": // with TLS 1.3 a server refuses a client's certificate only after the handshake
		return verdict{err: unavailable(fmt.Errorf("TLS: %w", op)), reach: everything}
	}
	return verdict{err: unavailable(errLost), reach: perhaps}
}

func errNoAnswer(ctx context.Context) error {
	return fmt.Errorf("no answer in time: %w", context.Cause(ctx))
}

// heed takes into account what the receiver says about time, for max at most. With 429 and 503 it asks for a pause (RFC 6585,
// RFC 9110). With 413 it says that the message is too large only for now. With a redirect, which is not followed, it is the time
// from which on the message may be sent again.
func (v *verdict) heed(answer *http.Response, now time.Time, longest time.Duration) {
	wait := min(retryAfter(answer.Header.Get("Retry-After"), now), longest)
	if wait <= 0 {
		return
	}
	switch status := answer.StatusCode; {
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		v.pause, v.reach = wait, everything
	case status == http.StatusRequestEntityTooLarge:
		v.err = fmt.Errorf("status %d %s, for now", status, http.StatusText(status))
	case status < 300, status >= 400:
		return
	}
	v.err = sinks.After(wait, v.err)
}

// retryAfter returns how long a header Retry-After asks to wait, and 0 if it does not.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
