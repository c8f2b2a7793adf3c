// Command dashboards makes the Grafana dashboard of outbox-cdc. "make dashboards" writes its output to
// monitoring/grafana/dashboards/outbox/outbox-monitoring.json, which the binary embeds. It is a module of its own, so that neither the
// product nor the linters depend on what it needs.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	text, err := generate()
	if err == nil {
		_, err = os.Stdout.Write(text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "dashboards:", err)
		os.Exit(1)
	}
}

// generate returns the dashboard as JSON that can be provisioned as it is.
func generate() ([]byte, error) {
	d, err := newDashboard()
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(d, "", "  ")
	// The SDK escapes what HTML would not bear, and expressions are full of it. People read the file, and it is in no page.
	for _, c := range []string{"<", ">", "&"} {
		text = bytes.ReplaceAll(text, fmt.Appendf(nil, `\u%04x`, c[0]), []byte(c))
	}
	return append(text, '\n'), err
}
