package monitoring

import (
	"cmp"
	_ "embed" // for the dashboard and the rules
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

// rules are the alert rules for Prometheus, and the recording rules that they need.
//
//go:embed rules/outbox-alerts.yml
var rules string

// recordPrefix begins the names of the recording rules.
const recordPrefix = "job:outbox_"

// WriteDashboard writes the dashboard for Grafana, with metrics whose names begin with prefix. The dashboard of another prefix than the
// default has an identity of its own, so that one Grafana can hold both.
func WriteDashboard(w io.Writer, prefix string) error { return write(w, dashboard, prefix) }

// WriteRules writes the alert rules for Prometheus and the recording rules that they need, with metrics whose names begin with prefix. The
// recording rules of another prefix than the default have other names, so that one Prometheus can have both files: two connectors in one
// process have the same job, and only their prefixes differ.
func WriteRules(w io.Writer, prefix string) error { return write(w, rules, prefix) }

// write writes the dashboard or the rules as they are for the default prefix, and with other names for another one. Both name recording
// rules and metrics; the dashboard has its own identity, and the rules lead to it.
func write(w io.Writer, text, prefix string) error {
	if prefix != defaultPrefix {
		text = strings.NewReplacer(
			`"title": "Outbox"`, fmt.Sprintf(`"title": %q`, strings.TrimSpace("Outbox "+prefix)),
			`"uid": "`+dashboardUID(defaultPrefix)+`"`, fmt.Sprintf(`"uid": %q`, dashboardUID(prefix)),
			"/d/"+dashboardUID(defaultPrefix)+"?", "/d/"+dashboardUID(prefix)+"?",
			recordPrefix, recordPrefix+cmp.Or(prefix, "bare_"),
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
