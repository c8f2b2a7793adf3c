package kafka

import (
	"errors"
	"fmt"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// verdict says what an answer means for the batch of a partition.
type verdict byte

const (
	transient   verdict = iota // not accepted, but the same batch may be accepted in a moment
	accepted                   // all records were accepted
	refused                    // no record was accepted, and the reason is these records
	renumber                   // no record was accepted, because the broker expected another sequence number
	unavailable                // no record was accepted, and waiting a moment will not help
)

type answer struct {
	verdict   verdict
	err       error // why it was not accepted
	class     error // if the verdict is unavailable: ErrUnavailable or ErrTopicUnavailable
	permanent bool  // if the verdict is refused and it was one record: it will never be accepted
	cluster   bool  // the reason concerns the whole cluster, and not this partition

	fromBroker bool // the broker has answered, with whatever code
	unknown    bool // the batch may have been accepted all the same
	timedOut   bool
}

// failure returns the error of the records of p if a is the final answer.
func (a *answer) failure(p *partition) error {
	switch {
	case p.topic.err != nil: // the topic became unusable meanwhile
		return p.topic.err
	case a.verdict == refused && a.permanent:
		return fmt.Errorf("%w: %s: %w", sinks.ErrPermanent, p, a.err)
	case a.verdict == refused:
		return fmt.Errorf("%s: %w", p, a.err)
	}
	return fmt.Errorf("%w: %s: %w", a.class, p, a.err)
}

var errNoAnswer = errors.New("the answer does not mention it")

// judge turns the error code of a partition into an answer.
func judge(code int16) answer {
	err := kerr.ErrorForCode(code)
	switch code {
	case 0, kerr.DuplicateSequenceNumber.Code: // a duplicate: the broker has the batch from an earlier try, but no longer knows its offset
		return answer{verdict: accepted}
	case kerr.OutOfOrderSequenceNumber.Code, kerr.UnknownProducerID.Code, kerr.InvalidProducerEpoch.Code, kerr.InvalidProducerIDMapping.Code,
		kerr.ProducerFenced.Code:
		return answer{verdict: renumber, err: err}
	case kerr.MessageTooLarge.Code, kerr.RecordListTooLarge.Code, kerr.InvalidRecord.Code, kerr.InvalidTopicException.Code:
		return answer{verdict: refused, err: err, permanent: true}
	case kerr.CorruptMessage.Code: // Kafka calls this retriable, but a batch that is corrupt each time must not be tried for ever
		return answer{verdict: refused, err: err}
	case kerr.TopicAuthorizationFailed.Code, kerr.UnsupportedForMessageFormat.Code:
		return answer{verdict: unavailable, err: err}
	case kerr.ClusterAuthorizationFailed.Code, kerr.UnsupportedCompressionType.Code, kerr.UnsupportedVersion.Code:
		return answer{verdict: unavailable, err: err, cluster: true}
	}
	if kerr.IsRetriable(err) {
		timedOut := code == kerr.RequestTimedOut.Code
		return answer{err: err, unknown: timedOut || code == kerr.NotEnoughReplicasAfterAppend.Code, timedOut: timedOut}
	}
	return answer{verdict: refused, err: err}
}

// judgeError returns the answer for a request that was not answered.
func judgeError(err error) answer {
	a := answer{err: markLogin(err), timedOut: isTimeout(err)}
	if isFinal(err) {
		a.verdict, a.cluster = unavailable, true
	}
	var op *net.OpError
	a.unknown = a.verdict == transient && !(errors.As(err, &op) && op.Op == "dial")
	return a
}

// markLogin marks an error that says that the brokers have refused user or password.
func markLogin(err error) error {
	if errors.Is(err, kerr.SaslAuthenticationFailed) {
		return sinks.RefusedLogin(err)
	}
	return err
}

func isTimeout(err error) bool {
	var t net.Error // the error of a context's deadline is one as well
	return errors.As(err, &t) && t.Timeout()
}

// isFinal reports whether Kafka itself has refused, for a reason that waiting a moment will not change: no right, no such user.
func isFinal(err error) bool {
	var k *kerr.Error
	return errors.As(err, &k) && !k.Retriable
}
