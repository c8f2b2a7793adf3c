package sinktest

import (
	"context"
	"errors"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// missing is the topic that the fake has not got until create is called.
func (f *fake) missing() (topic string, create func()) {
	return "other topic", f.takeAway(&sinks.Message{})
}

// stranger is a fake that refuses the login.
func (f *fake) stranger() sinks.Checker {
	s := newFake(f.bug)
	s.login = "wrong"
	return s
}

func (f *fake) Check(ctx context.Context, topics []string) ([]sinks.TopicCheck, error) {
	switch f.bug {
	case "check changes its topics":
		if len(topics) > 0 {
			topics[0] += "#"
		}
	case "check leaves a topic out":
		if len(topics) > 0 {
			topics = topics[1:]
		}
	case "check leaves a goroutine":
		go func() { <-time.After(5 * time.Second) }()
	}
	if err := f.reach(ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []sinks.TopicCheck
	for _, topic := range topics {
		c := sinks.TopicCheck{Kind: "topic", Topic: topic}
		if topic == f.gone {
			c.Err, c.Remedy = errors.New("it is missing"), "make "+topic
		}
		switch {
		case f.bug == "check sends a message":
			f.log = append(f.log, &outbox.Event{ID: "check"})
		case f.bug == "check drops what is sent":
			f.log = nil
		case f.bug == "check has no word for topics":
			c.Kind = ""
		case f.bug == "check has a remedy for nothing":
			c.Remedy = "make " + topic
		case f.bug == "check finds all topics":
			c.Err, c.Remedy = nil, ""
		case f.bug == "check stops at a missing topic" && c.Err != nil:
			return nil, c.Err
		case f.bug == "check makes topics":
			f.gone = ""
		}
		found = append(found, c)
	}
	return found, nil
}

// reach returns why a check cannot be made.
func (f *fake) reach(ctx context.Context) error {
	f.mu.Lock()
	away, hanging, login, was := f.away, f.hanging, f.login, f.was
	f.mu.Unlock()
	switch {
	case ctx.Err() != nil && f.bug != "check goes on after its context":
		return context.Cause(ctx)
	case f.bug == "check does not dial":
		return nil
	case was != nil:
		return was
	case away:
		if f.bug == "check waits for what is away" {
			<-ctx.Done()
		}
		err := errors.New("connection refused")
		switch f.bug {
		case "check calls all refusals a login":
			err = sinks.RefusedLogin(err)
		case "check remembers what was away":
			f.mu.Lock()
			f.was = err
			f.mu.Unlock()
		}
		return err
	case hanging != nil:
		<-ctx.Done()
		if f.bug == "check is late" {
			<-time.After(lateness + 100*time.Millisecond)
		}
		return context.Cause(ctx)
	case login == "wrong" && f.bug == "check hides a refused login":
		return errors.New("refused")
	case login == "wrong":
		return sinks.RefusedLogin(errors.New("refused"))
	}
	return nil
}
