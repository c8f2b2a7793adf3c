package monitoring

import (
	_ "embed" // for the dashboard
	"fmt"
	"hash/fnv"
	"io"
	"strings"
)

// defaultPrefix begins the names of metrics unless the configuration says otherwise, and in the files that are made for people to use.
const defaultPrefix = "pyairtable_outbox_"

// dashboard is the dashboard for Grafana, as tools/dashboards makes it.
//
//go:embed grafana/dashboards/outbox/outbox-monitoring.json
var dashboard string

// WriteDashboard writes the dashboard for Grafana, with metrics whose names begin with prefix. The dashboard of another prefix than the
// default has an identity of its own, so that one Grafana can hold both.
func WriteDashboard(w io.Writer, prefix string) error {
	text := dashboard
	if prefix != defaultPrefix {
		text = strings.NewReplacer(
			`"title": "Outbox"`, fmt.Sprintf(`"title": %q`, strings.TrimSpace("Outbox "+prefix)),
			`"uid": "`+dashboardUID(defaultPrefix)+`"`, fmt.Sprintf(`"uid": %q`, dashboardUID(prefix)),
			defaultPrefix, prefix,
		).Replace(text)
	}
	_, err := io.WriteString(w, text)
	return err
}

// dashboardUID is the identity of the dashboard in Grafana, which allows 40 characters, fewer than a prefix may have.
func dashboardUID(prefix string) string {
	if prefix == defaultPrefix {
		return "outbox-cdc"
	}
	h := fnv.New32a()
	io.WriteString(h, prefix) //nolint:errcheck // a hash takes everything
	return fmt.Sprintf("outbox-cdc-%08x", h.Sum32())
}
