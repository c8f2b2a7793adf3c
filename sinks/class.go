package sinks

import "errors"

// classes are the classes of errors that have a value of their own. If an error wraps several, it belongs to the first of them.
var classes = [...]error{ErrPermanent, ErrNotAttempted, ErrTopicUnavailable, ErrUnavailable}

// ClassOf returns the class of an error that Deliver has returned: ErrPermanent, ErrNotAttempted, ErrTopicUnavailable or
// ErrUnavailable itself. It is nil for an error of none of these, which says that the message was refused this time, and for nil.
func ClassOf(err error) error {
	if err == nil {
		return nil
	}
	for _, class := range classes {
		if errors.Is(err, class) {
			return class
		}
	}
	return nil
}
