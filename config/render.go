package config

import (
	"bytes"
	_ "embed"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed example.yml
var example string

// Example is a configuration with a comment on every key. It loads where DATABASE_URL is set.
func Example() string { return example }

// Effective writes what a configuration comes to, every default included and every secret masked, as YAML that loads
// where there was no secret.
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

// escape doubles what Load would take for a reference.
func escape(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		n.Value = strings.ReplaceAll(n.Value, "$", "$$")
	}
	for _, c := range n.Content {
		escape(c)
	}
}
