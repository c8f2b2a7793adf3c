package service

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/composite"
	"github.com/pyairtable-compose/outbox-cdc/sinks/kafka"
	"github.com/pyairtable-compose/outbox-cdc/sinks/stdout"
)

// buildSinks makes the connector's sinks of the configured ones: all but the composites, which are routing, and the
// members of an "any", which are one sink together.
func buildSinks(cfg config.Config, p Parts) ([]connector.Sink, error) {
	built := map[string]connector.Sink{}
	for i, sc := range cfg.Sinks {
		if sc.Composite != nil {
			continue
		}
		s, err := buildSink(sc, p)
		if err != nil {
			return nil, fmt.Errorf("sinks[%d] (%s): %w", i, sc.Name, err)
		}
		built[sc.Name] = s
	}
	for _, sc := range cfg.Sinks {
		switch c := sc.Composite; {
		case c == nil:
		case c.Strategy == config.StrategyAny:
			one, err := anyOf(sc, built)
			if err != nil {
				return nil, err
			}
			for _, name := range c.Members {
				delete(built, name)
			}
			built[sc.Name] = one
		case c.Strategy == config.StrategyPrimary:
			for _, name := range c.Members[1:] {
				s := built[name]
				s.OneTry = true
				built[name] = s
			}
		}
	}
	var out []connector.Sink
	for _, sc := range cfg.Sinks { // in the order of the configuration
		if s, ok := built[sc.Name]; ok {
			out = append(out, s)
		}
	}
	return out, nil
}

// anyOf makes one sink of the members of a composite.
func anyOf(sc config.Sink, built map[string]connector.Sink) (connector.Sink, error) {
	members := make([]connector.Sink, len(sc.Composite.Members))
	for i, name := range sc.Composite.Members {
		members[i] = built[name]
	}
	description, err := json.Marshal(map[string]any{"strategy": sc.Composite.Strategy, "members": sc.Composite.Members})
	return connector.Sink{
		Name: sc.Name, Type: sc.Type, Description: description,
		Open: func() (sinks.Sink, error) { return openAny(members) },
	}, err
}

func openAny(from []connector.Sink) (sinks.Sink, error) {
	var members []composite.Member
	for _, s := range from {
		sink, err := s.Open()
		if err != nil {
			_ = composite.NewAny(members...).Close() // of what was never used
			return nil, fmt.Errorf("member %q: %w", s.Name, err)
		}
		members = append(members, composite.Member{Name: s.Name, Sink: sink, Address: func(e *outbox.Event) (topic, key string) {
			return s.Topic.Expand(e), s.Key.Expand(e)
		}})
	}
	return composite.NewAny(members...), nil
}

// buildRoutes puts in the place of a composite the sinks that it stands for.
func buildRoutes(cfg config.Config) ([]connector.Route, error) {
	members := map[string][]string{}
	for _, s := range cfg.Sinks {
		if s.Composite != nil && s.Composite.Strategy != config.StrategyAny {
			members[s.Name] = s.Composite.Members
		}
	}
	var out []connector.Route
	for i, rc := range cfg.Routes {
		r := connector.Route{Match: router.Match(rc.Match)}
		for _, name := range rc.Sinks {
			if m, ok := members[name]; ok {
				r.Sinks = append(r.Sinks, m...)
			} else {
				r.Sinks = append(r.Sinks, name)
			}
		}
		for _, t := range []struct {
			text string
			into **router.Template
		}{{rc.Topic, &r.Topic}, {rc.Key, &r.Key}} {
			if t.text == "" {
				continue
			}
			template, err := router.ParseTemplate(t.text)
			if err != nil {
				return nil, fmt.Errorf("routes[%d]: %w", i, err)
			}
			*t.into = &template
		}
		out = append(out, r)
	}
	return out, nil
}

func buildSink(sc config.Sink, p Parts) (connector.Sink, error) {
	s := connector.Sink{Name: sc.Name, Type: sc.Type}
	var err error
	if s.Topic, err = router.ParseTemplate(sc.Topic); err != nil {
		return s, fmt.Errorf("topic: %w", err)
	}
	if s.Key, err = router.ParseTemplate(sc.Key); err != nil {
		return s, fmt.Errorf("key: %w", err)
	}
	description := map[string]any{"topic": sc.Topic, "key": sc.Key} // no secrets
	switch sc.Type {
	case config.SinkKafka:
		k := sc.Kafka
		description["brokers"] = k.Brokers
		kc := kafka.Config{
			Brokers: k.Brokers, ClientID: k.ClientID, Compression: k.Compression, Timestamp: k.Timestamp, Logger: p.Logger,
			SASL: kafka.SASL{Mechanism: k.SASL.Mechanism, Username: k.SASL.Username, Password: string(k.SASL.Password)},
		}
		if kc.TLS, err = tlsConfig(k.TLS); err != nil {
			return s, fmt.Errorf("tls: %w", err)
		}
		s.Open = func() (sinks.Sink, error) { return kafka.New(kc) }
	case config.SinkStdout:
		s.Open = func() (sinks.Sink, error) { return stdout.New(p.Stdout), nil }
	default:
		return s, fmt.Errorf("type %q is not built", sc.Type)
	}
	s.Description, err = json.Marshal(description)
	return s, err
}

// tlsConfig is nil where TLS is off. Certificates are verified unless the configuration says otherwise in so many words.
func tlsConfig(c config.TLS) (*tls.Config, error) {
	if !c.Enabled {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.InsecureSkipVerify} //nolint:gosec // asked for by name
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
