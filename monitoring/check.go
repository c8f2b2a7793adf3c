package monitoring

import (
	"fmt"
	"strings"
	"time"
)

// CheckStatus is what the checks of a sink have found: whether its destination and its topics could take messages. It is zero if nothing
// was found wrong, and for a sink that cannot be checked.
type CheckStatus struct {
	// Unreachable says why the destination cannot be used. It is empty if it can, and Since is zero then. Since is when the first check
	// in a row found that.
	Unreachable string
	Since       time.Time
	// Missing are topics of a destination that can be used otherwise.
	Missing []MissingTopic
}

// MissingTopic is a topic that a check has not found, or to which the connector may not write.
type MissingTopic struct {
	Kind  string // what the destination calls it: "topic", "stream", "subject", "URL"
	Topic string // without secrets
	Cause string
	// Remedy is the command that makes the topic, or empty.
	Remedy string
}

// String is one sentence for a person.
func (m MissingTopic) String() string {
	s := fmt.Sprintf("%s %q cannot be used: %s", m.Kind, m.Topic, m.Cause)
	if m.Remedy != "" {
		s += "; make it: " + m.Remedy
	}
	return s
}

// text says what the checks have found, for /readyz. It is empty if nothing is wrong.
func (c CheckStatus) text() string {
	if c.Unreachable != "" {
		return fmt.Sprintf("not reachable since %s: %s", stamp(c.Since), c.Unreachable)
	}
	missing := make([]string, len(c.Missing))
	for i, m := range c.Missing {
		missing[i] = m.String()
	}
	return strings.Join(missing, "; ")
}
