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

// reach says for which other messages an answer means that their destination is away.
type reach byte

const (
	thisMessage reach = iota // for none
	thisURL                  // for those of the same URL: the path does not exist, or there is no right to it
	everything               // for all
)

// verdict says what became of a request. Without an error the message was accepted.
type verdict struct {
	err   error
	reach reach
	lost  bool // there was no answer
}

// errLost replaces errors of net/http that may quote an answer which is not HTTP.
var errLost = errors.New("the connection ended without a sound answer; it may have been accepted")

// judge turns a status into a verdict. The error has a text of our own, because that of the receiver may contain anything.
func judge(status int) verdict {
	text := fmt.Sprint("status ", status)
	if known := http.StatusText(status); known != "" {
		text += " " + known
	}
	away := func(r reach, remedy string) verdict {
		return verdict{err: fmt.Errorf("%w: %s%s", sinks.ErrUnavailable, text, remedy), reach: r}
	}
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return verdict{err: fmt.Errorf("%w: %s", sinks.ErrPermanent, text)}
	case http.StatusUnauthorized, http.StatusForbidden:
		return away(thisURL, "; check secrets and headers")
	case http.StatusNotFound, http.StatusGone:
		return away(thisURL, "; check url")
	case http.StatusProxyAuthRequired, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable,
		http.StatusGatewayTimeout:
		return away(everything, "")
	}
	switch {
	case status >= 200 && status < 300:
		return verdict{}
	case status >= 300 && status < 400:
		return verdict{err: errors.New(text + ": redirects are not followed; set url to where it leads")}
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
		return verdict{err: unavailable(fmt.Errorf("no answer in time: %w", context.Cause(ctx))), reach: everything}
	case errors.As(err, &dial):
		return verdict{err: unavailable(dial), reach: everything}
	case errors.As(err, &op) && op.Op == "remote error": // with TLS 1.3 a server refuses a client's certificate only after the handshake
		return verdict{err: unavailable(fmt.Errorf("TLS: %w", op)), reach: everything}
	}
	return verdict{err: unavailable(errLost), lost: true}
}

// retryAfter returns how long the receiver asks for a pause, and 0 if it does not.
func retryAfter(answer *http.Response, now time.Time) time.Duration {
	if answer.StatusCode != http.StatusTooManyRequests && answer.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	text := answer.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
