package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// stillWaiting is how long Reach waits before it tells what has not answered yet, and between two such reports.
const stillWaiting = 2 * time.Second

// ReachOptions say how Reach asks.
type ReachOptions struct {
	// Timeout bounds the check of PostgreSQL, and that of each sink.
	Timeout time.Duration
	// Waiting is called every two seconds with the names of what has not answered yet. It may be nil.
	Waiting func(names []string)
}

// Reachable says whether a connector with this configuration could work now.
type Reachable struct {
	Usable     bool            `json:"usable"`
	PostgreSQL PostgreSQLCheck `json:"postgresql"`
	Sinks      []SinkCheck     `json:"sinks"`
}

// PostgreSQLCheck says whether a session could begin.
type PostgreSQLCheck struct {
	Usable   bool     `json:"usable"`
	Place    string   `json:"place"`              // such as: database "shop" on db.internal:5432
	Problems []string `json:"problems,omitempty"` // each with its remedy
	Warnings []string `json:"warnings,omitempty"`
}

// SinkCheck says whether a sink, or a member of a composite, could deliver. It holds no secret.
type SinkCheck struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Usable bool   `json:"usable"`
	// Problem says why the destination cannot be used.
	Problem string `json:"problem,omitempty"`
	// Unknown says why the sink could not be checked. It then counts as usable.
	Unknown string `json:"unknown,omitempty"`
	// Topics are those that can be named before there is an event.
	Topics []TopicCheck `json:"topics,omitempty"`
	// Templates are the topics that come from events, so that nobody can look for them.
	Templates []string `json:"templates,omitempty"`
	// Members are those of a composite with the strategy any: one that is usable is enough.
	Members []SinkCheck `json:"members,omitempty"`
}

// TopicCheck says whether a topic is there.
type TopicCheck struct {
	Kind    string `json:"kind"`
	Topic   string `json:"topic"`
	Usable  bool   `json:"usable"`
	Problem string `json:"problem,omitempty"`
	Remedy  string `json:"remedy,omitempty"` // the command that makes it
}

// Reach connects to PostgreSQL and to the destinations of all sinks, all at the same time, and looks whether they could be used. It sends no
// message and changes nothing. What cannot be used is no error.
func Reach(ctx context.Context, cfg config.Config, o ReachOptions) (Reachable, error) {
	all, members, err := buildSinksAndMembers(cfg, BuildOptions{Stdout: io.Discard})
	if err != nil {
		return Reachable{}, err
	}
	routes, err := buildRoutes(cfg)
	if err != nil {
		return Reachable{}, err
	}
	target, err := dsn.TargetOf(string(cfg.Source.DSN), cfg.Source.DSNPlace)
	if err != nil {
		return Reachable{}, err
	}
	c := connector.Config{Sinks: all, Routes: routes}
	r := Reachable{Usable: true, PostgreSQL: PostgreSQLCheck{Place: target.Place()}, Sinks: make([]SinkCheck, len(all))}
	w := waiting{names: map[string]struct{}{}}
	w.begin("PostgreSQL", func() { r.PostgreSQL.reach(ctx, cfg, o.Timeout) })
	for i, s := range all {
		into := &r.Sinks[i]
		into.Name, into.Type = s.Name, s.Type
		into.Members = make([]SinkCheck, len(members[s.Name]))
		for j, m := range members[s.Name] {
			w.begin(s.Name+"/"+m.Name, func() { into.Members[j] = reachSink(ctx, m, []router.Template{m.Topic}, o.Timeout) })
		}
		if len(into.Members) == 0 {
			w.begin(s.Name, func() { *into = reachSink(ctx, s, c.TopicsOf(s.Name), o.Timeout) })
		}
	}
	w.wait(o.Waiting)
	if ctx.Err() != nil {
		return Reachable{}, context.Cause(ctx)
	}
	r.Usable = r.PostgreSQL.Usable
	for i := range r.Sinks {
		s := &r.Sinks[i]
		if len(s.Members) > 0 {
			s.Usable = slices.ContainsFunc(s.Members, func(m SinkCheck) bool { return m.Usable })
		}
		r.Usable = r.Usable && s.Usable
	}
	return r, nil
}

func (p *PostgreSQLCheck) reach(ctx context.Context, cfg config.Config, timeout time.Duration) {
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	warnings, err := provision.Reach(within, source(cfg), string(cfg.Source.DSN), string(cfg.Source.ReplicationDSN))
	p.Usable, p.Warnings = err == nil, warnings
	if err == nil {
		return
	}
	p.Problems = strings.Split(err.Error(), "\n") // joined errors have a line each
	if within.Err() != nil {
		p.Problems = []string{fmt.Sprintf("no answer within %s; start PostgreSQL, or correct host and port of source.dsn", timeout)}
	}
}

// usesTopic reports whether a sink of this type sends a topic like this anywhere: there is nothing to look for at the others.
func usesTopic(sinkType, topic string) bool {
	switch sinkType {
	case config.SinkStdout:
		return false
	case config.SinkWebhook:
		return strings.Contains(topic, "://")
	}
	return true
}

// reachSink checks one sink that is no composite.
func reachSink(ctx context.Context, s connector.Sink, templates []router.Template, timeout time.Duration) SinkCheck {
	c := SinkCheck{Name: s.Name, Type: s.Type, Usable: true}
	var topics []string
	for _, t := range templates {
		switch topic, constant := t.Constant(); {
		case !usesTopic(s.Type, t.Text()):
		case !constant:
			c.Templates = append(c.Templates, config.ShownTemplate(t.Text()))
		case topic != "":
			topics = append(topics, topic)
		}
	}
	if s.Open == nil {
		c.Unknown = "it lives in the service that embeds the connector"
		return c
	}
	sink, err := s.Open()
	if err != nil {
		c.Usable, c.Problem = false, err.Error()
		return c
	}
	defer func() { _ = sink.Close() }() // it was only asked
	checker, ok := sink.(sinks.Checker)
	if !ok {
		c.Unknown = "it has no way to be checked without a message"
		return c
	}
	within, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	found, err := checker.Check(within, topics)
	if err != nil {
		c.Usable, c.Problem = false, err.Error()
		if cause := context.Cause(within); cause != nil && errors.Is(err, context.DeadlineExceeded) { // a sink may have deadlines of its own
			c.Problem = cause.Error() + ": " + c.Problem
		}
		return c
	}
	for _, f := range found {
		t := TopicCheck{Kind: f.Kind, Topic: config.ShownTemplate(f.Topic), Usable: f.Err == nil, Remedy: f.Remedy}
		if f.Err != nil {
			c.Usable, t.Problem = false, f.Err.Error()
		}
		c.Topics = append(c.Topics, t)
	}
	return c
}

// waiting runs checks, and knows which of them have not ended yet.
type waiting struct {
	checks sync.WaitGroup
	mu     sync.Mutex
	names  map[string]struct{}
}

func (w *waiting) begin(name string, check func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[name] = struct{}{}
	w.checks.Go(func() {
		check()
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.names, name)
	})
}

// wait waits for all checks, and tells which of them take long.
func (w *waiting) wait(tell func(names []string)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.checks.Wait()
	}()
	tick := time.NewTicker(stillWaiting)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		names := slices.Sorted(maps.Keys(w.names))
		w.mu.Unlock()
		if tell != nil && len(names) > 0 {
			tell(names)
		}
	}
}
