package eventbus

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// apiError is an error of JetStream.
type apiError struct {
	Code        int    `json:"code"` // like a status of HTTP
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

// Some error codes of JetStream (server/errors.json).
const (
	codeAccountLimits     = 10002
	codeUnavailable       = 10008
	codeServerResources   = 10023
	codeServerMemory      = 10028
	codeNotEnabledAccount = 10039
	codeServerStorage     = 10047
	codeMessageTooLarge   = 10054
	codeOtherStream       = 10060
	codeNotEnabled        = 10076
	codeStoreFailed       = 10077
	codeHeadersTooLarge   = 10097
	codeSealed            = 10109
	codeStreamBytes       = 10122
	codeDuplicateUnderway = 10158
)

var (
	errNoStream     = errors.New("no stream takes it; create one, or enable JetStream for this account")
	errNotJetStream = errors.New("something else than a stream answers there; it must not respond to published events")
	errNotEnabled   = errors.New("no server serves JetStream for this account; enable it")
)

// duplicateWindow is how long a stream remembers Nats-Msg-Ids by default.
const duplicateWindow = 2 * time.Minute

// errTaken is the error of a New message that the stream has dropped as a duplicate: another message has the same id.
// When the stream has forgotten that one, it accepts this one.
var errTaken = errors.New("the stream has dropped it as a duplicate, and it is none: another message with its Nats-Msg-Id came within " +
	"the stream's duplicate window. Where ids are numbers, do not begin them anew within that window (truncate … restart identity); " +
	"give two servers whose databases and tables have the same names, and two sinks for the same events, streams of their own. " +
	`Once the window has passed (nats stream info) it is accepted; if it is dead by then: "outbox-cdc dlq retry"`)

// hasNoResponders reports whether the server itself has answered, because nobody has subscribed to the subject.
func hasNoResponders(answer *nats.Msg) bool {
	return len(answer.Data) == 0 && answer.Header.Get("Status") == "503"
}

// judge returns the error that an answer to m means, and nil if m was accepted. The error wraps topicAway if only the subject
// of m is away: see sinks.Topics.
func judge(m *sinks.Message, answer *nats.Msg, topicAway error) error {
	subject := m.Topic
	if hasNoResponders(answer) {
		return fmt.Errorf("%w: subject %q: %w", topicAway, subject, errNoStream)
	}
	var a struct {
		Stream    string    `json:"stream"`
		Duplicate bool      `json:"duplicate"`
		Error     *apiError `json:"error"`
	}
	err := json.Unmarshal(answer.Data, &a)
	switch {
	case err == nil && a.Error != nil:
		return a.Error.failure(subject, topicAway)
	case err != nil || a.Stream == "":
		return fmt.Errorf("%w: subject %q: %w", topicAway, subject, errNotJetStream)
	case a.Duplicate && m.New:
		return sinks.After(duplicateWindow, fmt.Errorf("subject %q, Nats-Msg-Id %q: %w", subject, m.UniqueID(), errTaken))
	}
	return nil
}

// judgeJetStream returns an error if the answer to a request for infoSubject says that JetStream is away as a whole.
func judgeJetStream(answer *nats.Msg) error {
	if hasNoResponders(answer) {
		return errNotEnabled
	}
	var a struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &a); err != nil || a.Error == nil || !a.Error.isOfServer() {
		return nil
	}
	return errors.New(a.Error.words())
}

// isOfServer reports whether the cause is the server or the account, so that all streams are away.
func (e *apiError) isOfServer() bool {
	switch e.ErrCode {
	case codeAccountLimits, codeStreamBytes, codeUnavailable, codeServerResources, codeServerMemory, codeServerStorage,
		codeNotEnabled, codeNotEnabledAccount:
		return true
	}
	return false
}

// failure returns the error of a message, which ends with what a person can do. If the cause is the stream and not this
// message, the error is of class topicAway, even if JetStream's code is that of a bad request; if it is the server or the
// account, ErrUnavailable. Such a failure must not use up the attempts of messages that are in order.
func (e *apiError) failure(subject string, topicAway error) error {
	class, remedy := error(nil), ""
	switch e.ErrCode {
	case codeMessageTooLarge, codeHeadersTooLarge:
		class = sinks.ErrPermanent
	case codeStoreFailed:
		if e.Description == "message too large" {
			class = sinks.ErrPermanent
			break
		}
		class, remedy = topicAway, "; if the stream is full, raise its limits, or let it discard old messages"
	case codeOtherStream:
		class, remedy = topicAway, "; another stream than the configured one takes this subject"
	case codeSealed:
		class, remedy = topicAway, "; send this subject to another stream"
	case codeAccountLimits, codeStreamBytes:
		class, remedy = sinks.ErrUnavailable, "; raise the limits"
	case codeDuplicateUnderway: // an earlier try is still being replicated
		class = topicAway
	default:
		switch {
		case e.isOfServer():
			class = sinks.ErrUnavailable
		case e.Code >= http.StatusInternalServerError || e.Code == http.StatusTooManyRequests || e.Code == http.StatusRequestTimeout:
			class = topicAway // it was a stream that has answered
		}
	}
	if class == nil {
		return fmt.Errorf("subject %q: %s", subject, e.words())
	}
	err := fmt.Errorf("%w: subject %q: %s%s", class, subject, e.words(), remedy)
	if e.Code == http.StatusTooManyRequests {
		return sinks.Throttled(err)
	}
	return err
}

// markLogin marks an error that says that the server has refused user, password, token or key.
func markLogin(err error) error {
	for _, refused := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired} {
		if errors.Is(err, refused) {
			return sinks.RefusedLogin(err)
		}
	}
	return err
}

// knownDescriptions holds descriptions of errors that JetStream gives. Others are not shown, because whoever else answers may quote
// the message.
var knownDescriptions = map[string]bool{
	"insufficient resources": true, "maximum bytes exceeded": true, "maximum messages exceeded": true,
	"maximum messages per subject exceeded": true, "message size exceeds maximum allowed": true, "message too large": true,
	"header size exceeds maximum allowed of 64k": true, "resource limits exceeded for account": true,
	"expected stream does not match": true, "invalid operation on sealed stream": true, "store failed": true,
	"duplicate message id is in process": true, "wrong last sequence": true, "stream not found": true, "no suitable peers for placement": true,
	"JetStream system temporarily unavailable": true, "JetStream not enabled for account": true, "JetStream not enabled": true,
	"insufficient memory resources available": true, "insufficient storage resources available": true, "stream is offline": true,
	"too many requests": true,
}

func (e *apiError) words() string {
	if knownDescriptions[e.Description] {
		return fmt.Sprintf("%s (%d)", e.Description, e.ErrCode)
	}
	return fmt.Sprintf("JetStream error %d", e.ErrCode)
}
