package connector

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/wait"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// checkTimeout bounds one check of a sink.
	checkTimeout = 10 * time.Second
	// maxCheckEvery is the longest time between two checks of a sink of which nobody knows that it works.
	maxCheckEvery = 30 * time.Second
)

// sinkCheck checks one sink of a session, beside the lanes. It checks at the beginning of the session, because a sink that does not work
// would otherwise look well until the first event, and then again as long as nothing else shows how the sink does: until it has accepted a
// message, and while its breaker is not closed, for there may be no message left by which the breaker could ask.
type sinkCheck struct {
	sink    sinks.Checker
	topics  []string
	only    bool // the sink has one topic: without it, the sink is as good as away
	every   time.Duration
	state   *sinkState
	breaker *breaker
}

// newSinkCheck returns what checks a sink, or nil if the sink cannot be checked.
func (c *Connector) newSinkCheck(sc Sink, opened sinks.Sink) *sinkCheck {
	checker, ok := opened.(sinks.Checker)
	if !ok {
		return nil
	}
	every := c.cfg.Breaker.ResetTimeout
	if every <= 0 || every > maxCheckEvery {
		every = maxCheckEvery
	}
	lasting := c.sinks[sc.Name]
	k := &sinkCheck{sink: checker, every: every, state: lasting.state, breaker: lasting.breaker}
	templates := c.cfg.TopicsOf(sc.Name)
	for _, t := range templates {
		if topic, constant := t.Constant(); constant && topic != "" {
			k.topics = append(k.topics, topic)
		}
	}
	k.only = len(templates) == 1 && len(k.topics) == 1
	return k
}

// TopicsOf returns the templates of the topics that events of a sink may have, each once: that of the sink, and those of the routes that lead
// to it.
func (c *Config) TopicsOf(sink string) (all []router.Template) {
	add := func(t router.Template) {
		if !slices.ContainsFunc(all, t.Equal) {
			all = append(all, t)
		}
	}
	at := slices.IndexFunc(c.Sinks, func(s Sink) bool { return s.Name == sink })
	if at < 0 {
		return nil
	}
	own := c.Sinks[at].Topic
	if len(c.Routes) == 0 {
		add(own)
	}
	for _, r := range c.Routes {
		switch {
		case !slices.Contains(r.Sinks, sink):
		case r.Topic != nil:
			add(*r.Topic)
		default:
			add(own)
		}
	}
	return all
}

// run checks until ctx ends.
func (k *sinkCheck) run(ctx context.Context) {
	for {
		if k.state.needsCheck() {
			k.once(ctx)
		}
		if wait.For(ctx, k.every-rand.N(k.every/5+1)) != nil { //nolint:gosec // a jitter: not all sinks of all connectors at the same time
			return
		}
	}
}

// once makes one check, and tells the sink's state and its breaker what it has found.
func (k *sinkCheck) once(ctx context.Context) {
	began := time.Now()
	within, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("no answer within %s", checkTimeout))
	defer cancel()
	found, err := k.sink.Check(within, k.topics)
	if ctx.Err() != nil {
		return // the session has ended the check, which says nothing of the sink
	}
	r := checkResult{began: began, err: err}
	for _, f := range found {
		k.state.login.note(f.Err)
		switch {
		case err != nil || f.Err == nil:
		case k.only:
			r.err = errors.New(missingTopic(f).String())
		default:
			r.missing = append(r.missing, f)
		}
	}
	k.state.checked(r)
	if r.err == nil {
		k.breaker.checked()
	}
}

func missingTopic(f sinks.TopicCheck) monitoring.MissingTopic {
	return monitoring.MissingTopic{Kind: f.Kind, Topic: shownTopic(f.Topic), Cause: errText(f.Err), Remedy: f.Remedy}
}

// shownTopic returns a topic as it may be shown. Of a URL it returns only scheme and host: the rest may be the secret of a webhook.
func shownTopic(topic string) string {
	if !strings.Contains(topic, "://") {
		return topic
	}
	u, err := url.Parse(topic)
	if err != nil || u.Host == "" {
		return "***"
	}
	return u.Scheme + "://" + u.Host + "/***"
}
