package monitoring

// Counts count what became of the deliveries of a sink.
type Counts struct {
	Delivered int64
	Failed    int64 // one try, to be tried again
	Dead      int64 // given up
	Discarded int64 // given up by a sink that is tried once
	Unparked  int64 // those of Delivered that had been parked
	Parked    int64 // put into outbox_parked to wait there, tried or not; dead letters are not among them
	Retried   int64 // tries of messages that had been tried before
	Errors    ErrorCounts
}

// Plus returns the sum of two counts.
func (c Counts) Plus(d Counts) Counts {
	return Counts{
		Delivered: c.Delivered + d.Delivered, Failed: c.Failed + d.Failed, Dead: c.Dead + d.Dead, Discarded: c.Discarded + d.Discarded,
		Unparked: c.Unparked + d.Unparked, Parked: c.Parked + d.Parked, Retried: c.Retried + d.Retried, Errors: c.Errors.plus(d.Errors),
	}
}

// ErrorClass says why a sink did not accept a message that was tried. These are the classes of sinks.Sink, and one more for
// destinations that answer that they get too much.
type ErrorClass uint8

// The classes of errors.
const (
	ErrorUnavailable      ErrorClass = iota // the destination is away
	ErrorTopicUnavailable                   // the destination answers, and the message's topic is away
	ErrorRefused                            // the message was refused this time
	ErrorPermanent                          // the message can never be accepted
	ErrorThrottled                          // the destination answers that it gets too much
)

var errorClassNames = [...]string{"unavailable", "topic_unavailable", "refused", "permanent", "throttled"}

// ErrorCounts count messages that were tried and not accepted, by ErrorClass.
type ErrorCounts [len(errorClassNames)]int64

func (e ErrorCounts) plus(f ErrorCounts) ErrorCounts {
	for class := range e {
		e[class] += f[class]
	}
	return e
}
