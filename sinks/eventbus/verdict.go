package eventbus

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// apiError is JetStream's.
type apiError struct {
	Code        int    `json:"code"` // as in HTTP
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

// Some of JetStream's error codes (server/errors.json).
const (
	codeAccountLimits     = 10002
	codeMessageTooLarge   = 10054
	codeOtherStream       = 10060
	codeStoreFailed       = 10077
	codeHeadersTooLarge   = 10097
	codeSealed            = 10109
	codeStreamBytes       = 10122
	codeDuplicateUnderway = 10158
)

var errNotJetStream = errors.New("something else than a stream answers there; it must not respond to published events")

// judge tells what an answer to a message for subject means: nil is accepted.
func judge(subject string, answer *nats.Msg) error {
	if len(answer.Data) == 0 && answer.Header.Get("Status") == "503" {
		return fmt.Errorf("%w: no stream takes subject %q; create one, or enable JetStream for this account", sinks.ErrUnavailable, subject)
	}
	var a struct {
		Stream string    `json:"stream"`
		Error  *apiError `json:"error"`
	}
	err := json.Unmarshal(answer.Data, &a)
	switch {
	case err == nil && a.Error != nil:
		return a.Error.failure(subject)
	case err != nil || a.Stream == "":
		return fmt.Errorf("%w: subject %q: %w", sinks.ErrUnavailable, subject, errNotJetStream)
	}
	return nil
}

// failure is of a class and ends with what a person can do. What is the matter with a stream and not with this message
// is unavailable, also where JetStream's code is that of a bad request: it must not use up the attempts of sound events.
func (e *apiError) failure(subject string) error {
	class, remedy := error(nil), ""
	switch e.ErrCode {
	case codeMessageTooLarge, codeHeadersTooLarge:
		class = sinks.ErrPermanent
	case codeStoreFailed:
		if e.Description == "message too large" {
			class = sinks.ErrPermanent
			break
		}
		class, remedy = sinks.ErrUnavailable, "; if the stream is full, raise its limits, or let it discard old messages"
	case codeOtherStream:
		class, remedy = sinks.ErrUnavailable, "; another stream than the configured one takes this subject"
	case codeSealed:
		class, remedy = sinks.ErrUnavailable, "; send this subject to another stream"
	case codeAccountLimits, codeStreamBytes:
		class, remedy = sinks.ErrUnavailable, "; raise the limits"
	case codeDuplicateUnderway: // an earlier try is still being replicated
		class = sinks.ErrUnavailable
	default:
		if e.Code >= http.StatusInternalServerError || e.Code == http.StatusTooManyRequests || e.Code == http.StatusRequestTimeout {
			class = sinks.ErrUnavailable
		}
	}
	if class == nil {
		return fmt.Errorf("subject %q: %s (%d)", subject, e.Description, e.ErrCode)
	}
	return fmt.Errorf("%w: subject %q: %s (%d)%s", class, subject, e.Description, e.ErrCode, remedy)
}
