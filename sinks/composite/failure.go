package composite

import (
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// hope says how much hope an error leaves that the message will be accepted. The values are in the order of hope.
type hope int

const (
	nothing   hope = iota // no member has failed yet
	notAsked              // the member was not given the message, because an earlier one failed there
	permanent             // the member will never accept it
	putOff                // the member knows that its topic is away, and did not ask
	away                  // the member is away
	topicAway             // the member answers, and the topic there is away
	refused               // the member answers
)

// hopes are those of the classes of errors.
var hopes = map[error]hope{
	nil: refused, sinks.ErrPermanent: permanent, sinks.ErrTopicUnavailable: topicAway, sinks.ErrUnavailable: away,
	sinks.ErrNotAttempted: notAsked,
}

func hopeOf(err error) hope {
	h := hopes[sinks.ClassOf(err)]
	if h == notAsked && sinks.RetryAfter(err) > 0 {
		return putOff
	}
	return h
}

// failure is what the members have said of one message that none of them has accepted. It becomes the error that leaves most
// hope. The message is due at the earliest time of the members that may accept it; if one of them gives no time, that is the
// time of an error without one.
//
//   - Refused by one member, and another one is away: refused. The composite as a whole is not away.
//   - Put off by one member, and another one is away: ErrTopicUnavailable without a time. The first member answers others, so the
//     breaker must not count this. But the second one may be back before the time of the first has come.
//   - Put off by one member, and another one will never accept it: put off.
//   - Not asked by one member, because an earlier message of the aggregate was not accepted there, and another one will never accept
//     it: refused. The next try asks the first one.
type failure struct {
	hope      hope
	best      error         // the error that leaves most hope
	due       time.Duration // when a member may be asked again; 0: at a time that the caller chooses
	dated     bool          // due has a value
	isPutOff  bool          // one member has put the message off
	notAsked  bool          // one member was not asked
	uncertain bool          // one member may have accepted the message
}

// add adds what a member has said.
func (f *failure) add(member string, err error) {
	h := hopeOf(err)
	f.uncertain = f.uncertain || sinks.IsUncertain(err)
	switch h {
	case notAsked:
		f.notAsked = true
	case permanent:
	default:
		f.isPutOff = f.isPutOff || h == putOff
		if wait := sinks.RetryAfter(err); !f.dated || wait < f.due {
			f.due, f.dated = wait, true
		}
	}
	if h <= f.hope {
		return
	}
	f.hope, f.best = h, err
	if h != notAsked {
		f.best = fmt.Errorf("%s: %w", member, err)
	}
}

// err returns the error of the message.
func (f *failure) err() error {
	err := f.best
	switch {
	case f.hope == away && f.isPutOff:
		err = fmt.Errorf("%w at one member, which is not asked again yet; %v", sinks.ErrTopicUnavailable, err) //nolint:errorlint // one class
	case f.hope == permanent && f.notAsked:
		err = fmt.Errorf("%v, and not every member was asked", err) //nolint:errorlint // its class is not the message's
	}
	if sinks.RetryAfter(err) != f.due {
		err = sinks.After(f.due, err)
	}
	if f.uncertain && !sinks.IsUncertain(err) {
		err = sinks.Uncertain(err)
	}
	return err
}
