package config

import (
	"bytes"
	_ "embed"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed example.yml
var exampleText string

// Example returns a configuration with a comment on every key. It loads if DATABASE_URL is set.
func Example() string { return exampleText }

// Effective writes a configuration as YAML, with every default, and with every secret masked. If it has no secret, the YAML can
// be loaded.
func Effective(c Config) (string, error) {
	var n yaml.Node
	if err := n.Encode(c); err != nil {
		return "", err
	}
	escape(&n)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&n); err != nil {
		return "", err
	}
	return out.String(), nil
}

// escape doubles the dollar signs that Load would take for the beginning of a reference.
func escape(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		n.Value = strings.ReplaceAll(n.Value, "$", "$$")
	}
	for _, c := range n.Content {
		escape(c)
	}
}

// MarshalYAML writes that there is no server as a person would write it.
func (h HTTP) MarshalYAML() (any, error) {
	type plain HTTP // without this method
	if h.Listen == "" {
		h.Listen = listenOff
	}
	return plain(h), nil
}

// MarshalYAML masks a topic that is a URL.
func (r Route) MarshalYAML() (any, error) {
	type plain Route // without this method
	r.Topic, r.Key = ShownTemplate(r.Topic), ShownTemplate(r.Key)
	return plain(r), nil
}

// MarshalYAML writes the keys that every sink has and those of its type as one mapping.
func (s Sink) MarshalYAML() (any, error) {
	common := struct {
		Name, Type string
		Topic      string  `yaml:"topic,omitempty"` // a composite has none
		Key        string  `yaml:"key,omitempty"`
		MaxRetries *int    `yaml:"max_retries,omitempty"`
		SLA        SinkSLA `yaml:"sla,omitempty"`
	}{s.Name, s.Type, ShownTemplate(s.Topic), ShownTemplate(s.Key), s.MaxRetries, s.SLA}
	var out yaml.Node
	if err := out.Encode(common); err != nil {
		return nil, err
	}
	var own any
	switch {
	case s.Kafka != nil:
		own = *s.Kafka
	case s.Redis != nil:
		own = *s.Redis
	case s.Webhook != nil:
		own = *s.Webhook
	case s.EventBus != nil:
		own = *s.EventBus
	case s.Composite != nil:
		own = *s.Composite
	default:
		return &out, nil
	}
	var n yaml.Node
	if err := n.Encode(own); err != nil {
		return nil, err
	}
	out.Content = append(out.Content, n.Content...)
	return &out, nil
}
