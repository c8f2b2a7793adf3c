package kafka

import (
	"errors"
	"fmt"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// verdict is what an answer means for the one batch of a partition.
type verdict byte

const (
	transient   verdict = iota // the same batch may be taken in a moment
	accepted                   // all of it
	refused                    // none of it, and the answer is about these records
	renumber                   // none of it: the broker expected another sequence number
	unavailable                // none of it, and a moment's wait will not change that
)

type answer struct {
	verdict   verdict
	err       error // the cause
	permanent bool  // refused, and if it was one record, for ever
	unknown   bool  // it may have been accepted all the same
	timedOut  bool
}

// failure is what the records of p are told when a is final.
func (a *answer) failure(p *partition) error {
	class := sinks.ErrUnavailable
	switch {
	case p.topic.err != nil: // it went away meanwhile
		return p.topic.err
	case a.verdict == refused && a.permanent:
		class = sinks.ErrPermanent
	case a.verdict == refused:
		return fmt.Errorf("%s: %w", p, a.err)
	}
	return fmt.Errorf("%w: %s: %w", class, p, a.err)
}

var errNoAnswer = errors.New("no answer for this partition")

// judge turns a partition's error code into an answer.
func judge(code int16) answer {
	err := kerr.ErrorForCode(code)
	switch code {
	case 0, kerr.DuplicateSequenceNumber.Code: // the latter: it has it since an earlier try, and forgot at which offset
		return answer{verdict: accepted}
	case kerr.OutOfOrderSequenceNumber.Code, kerr.UnknownProducerID.Code, kerr.InvalidProducerEpoch.Code, kerr.InvalidProducerIDMapping.Code,
		kerr.ProducerFenced.Code:
		return answer{verdict: renumber, err: err}
	case kerr.MessageTooLarge.Code, kerr.RecordListTooLarge.Code, kerr.InvalidRecord.Code, kerr.InvalidTopicException.Code:
		return answer{verdict: refused, err: err, permanent: true}
	case kerr.CorruptMessage.Code: // retriable, says Kafka; but one that is corrupt each time must not be tried for ever
		return answer{verdict: refused, err: err}
	case kerr.TopicAuthorizationFailed.Code, kerr.ClusterAuthorizationFailed.Code, kerr.UnsupportedCompressionType.Code,
		kerr.UnsupportedForMessageFormat.Code, kerr.UnsupportedVersion.Code:
		return answer{verdict: unavailable, err: err}
	}
	if kerr.IsRetriable(err) {
		timedOut := code == kerr.RequestTimedOut.Code
		return answer{err: err, unknown: timedOut || code == kerr.NotEnoughReplicasAfterAppend.Code, timedOut: timedOut}
	}
	return answer{verdict: refused, err: err}
}

// judgeError does so for a request without an answer.
func judgeError(err error) answer {
	a := answer{err: err, timedOut: isTimeout(err)}
	if isFinal(err) {
		a.verdict = unavailable
	}
	var op *net.OpError
	a.unknown = a.verdict == transient && !(errors.As(err, &op) && op.Op == "dial")
	return a
}

func isTimeout(err error) bool {
	var t net.Error // a context's deadline is one, too
	return errors.As(err, &t) && t.Timeout()
}

// isFinal tells whether Kafka itself said no, in a way that a moment's wait will not change: no right, no such user.
func isFinal(err error) bool {
	var k *kerr.Error
	return errors.As(err, &k) && !k.Retriable
}
