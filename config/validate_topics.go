package config

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The rules of this file are those by which the sinks' packages refuse a message for good. A template whose literal part
// breaks one makes every event a dead letter. What its fields hold is seen only when events come.

var (
	field        = regexp.MustCompile(`\{[^{}]*\}`)
	topicLiteral = regexp.MustCompile(`^[a-zA-Z0-9._-]{0,249}$`)
)

const (
	maxStreamName = 1024 // bytes, of Redis
	maxSubject    = 2048 // of NATS
)

// topicFault says why s takes no event at all under a topic, or nothing.
func topicFault(s *Sink, topic string) string {
	switch {
	case topic == "": // is reported as such
	case s.Type == SinkKafka:
		if literal := field.ReplaceAllString(topic, ""); !topicLiteral.MatchString(literal) || topic == "." || topic == ".." {
			return quotedTopic(topic) + " is no name for a topic: at most 249 letters, digits, ., _ and - beside the fields"
		}
	case s.Type == SinkRedis:
		if literal := field.ReplaceAllString(topic, ""); len(literal) > maxStreamName || hasControl(literal) {
			return quotedTopic(topic) + " is no name for a stream: at most 1024 bytes beside the fields, no control characters"
		}
	case s.Type == SinkEventBus:
		return subjectFault(topic)
	case s.Type == SinkWebhook && IsWebURL(topic): // another topic only names something
		return targetFault(s.Webhook.URL, topic)
	}
	return ""
}

func subjectFault(topic string) string {
	subject := field.ReplaceAllString(topic, "x")
	first, _, _ := strings.Cut(subject, ".")
	switch {
	case len(field.ReplaceAllString(topic, "")) > maxSubject:
		return quotedTopic(topic) + " is too long for a subject: at most 2048 bytes beside the fields"
	case strings.ContainsFunc(subject, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '*' || r == '>' }):
		return quotedTopic(topic) + " is no subject to publish to: it has a space, a control character, * or >"
	case slices.Contains(strings.Split(subject, "."), ""):
		return quotedTopic(topic) + " is no subject: it has an empty token, before, behind or between dots"
	case first[0] == '$' || first == "_INBOX":
		return quotedTopic(topic) + " is one of the server's own subjects, which begin with $ or _INBOX"
	}
	return ""
}

// targetFault quotes nothing of the topic: in a URL of somebody's webhook everything but the host may be the secret.
func targetFault(address URL, topic string) string {
	own := parseURL(address)
	if own == nil {
		return "" // is reported with the URL
	}
	_, rest, _ := strings.Cut(topic, "://")
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	u, err := url.Parse(field.ReplaceAllString(topic, "x"))
	switch {
	case strings.ContainsAny(rest, "{}"):
		return fmt.Sprintf("is a URL with a field in its host, which must be that of url; write %s://%s/…", own.Scheme, own.Host)
	case err != nil:
		return fmt.Sprintf("is a URL that cannot be parsed; write %s://%s/…", own.Scheme, own.Host)
	case u.User != nil:
		return "is a URL with a user or a password; use headers (Authorization) instead"
	case u.Scheme != own.Scheme || !strings.EqualFold(u.Hostname(), own.Hostname()) || portOf(u) != portOf(own):
		return fmt.Sprintf("is a URL of another scheme, host or port than url; write %s://%s/…, or a sink of its own for that host", own.Scheme, own.Host)
	}
	segments := strings.Split(strings.ReplaceAll(u.Path, `\`, "/"), "/")
	for i, segment := range segments {
		name, _, _ := strings.Cut(segment, ";")
		switch {
		case name != "" && strings.Trim(name, ". ") == "":
			return "is a URL that goes up: it has a segment . or .. in it"
		case segment == "" && i > 0 && i < len(segments)-1 && u.RawPath == "":
			return "is a URL with an empty segment (//, or a backslash) in its path, which not every server keeps"
		}
	}
	if strings.Contains(u.Path, `\`) || hasControl(u.Path) {
		return "is a URL with a backslash or a control character in its path, which not every server takes for the same"
	}
	return ""
}

// routeTopic checks what a route puts in the place of its sinks' topics, composites being the sinks that they stand for.
// All that is wrong is one mistake: a key has one.
func (v *validator) routeTopic(path string, r *Route, sinks map[string]*Sink) {
	var faults []string
	names := map[string][]string{} // of the sinks, by fault
	add := func(s *Sink) {
		fault := topicFault(s, r.Topic)
		if fault == "" || slices.Contains(names[fault], strconv.Quote(s.Name)) {
			return
		}
		if names[fault] == nil {
			faults = append(faults, fault)
		}
		names[fault] = append(names[fault], strconv.Quote(s.Name))
	}
	for _, name := range r.Sinks {
		s := sinks[name]
		switch {
		case s == nil: // is reported with the name
		case s.Composite == nil:
			add(s)
		case s.Composite.Strategy != StrategyAny: // which may have no topic from a route
			for _, member := range s.Composite.Members {
				if m := sinks[member]; m != nil {
					add(m)
				}
			}
		}
	}
	for i, fault := range faults {
		faults[i] = "for " + strings.Join(names[fault], ", ") + ": " + fault
	}
	if faults != nil {
		v.mistake(path, "%s", strings.Join(faults, "; "))
	}
}

// IsWebURL reports whether the topic of a webhook is a URL, to which the message goes in place of the sink's own.
func IsWebURL(topic string) bool {
	return strings.HasPrefix(topic, "https://") || strings.HasPrefix(topic, "http://")
}

// quotedTopic returns a topic for a mistake. If the topic is a URL, only those parts are shown that may hold no secret.
func quotedTopic(topic string) string {
	return strconv.Quote(ShownTemplate(topic))
}

// isAllowed reports whether the host of u is among a webhook's allow_hosts. An entry is a host or host:port.
func isAllowed(u *url.URL, hosts []string) bool {
	return slices.ContainsFunc(hosts, func(entry string) bool {
		host, port, err := net.SplitHostPort(entry)
		if err != nil { // without a port
			host, port = strings.Trim(entry, "[]"), ""
		}
		return strings.EqualFold(host, u.Hostname()) && (port == "" || port == portOf(u))
	})
}

func portOf(u *url.URL) string {
	switch port := u.Port(); {
	case port != "":
		return port
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}
