package monitoring

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

const rulesFile = "rules/outbox-alerts.yml"

// rule is an alert or a recording rule.
type rule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

func readRules(t *testing.T) (all []rule) {
	t.Helper()
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 20 {
		t.Fatalf("there are %d rules", len(all))
	}
	return all
}

var runbookHeading = regexp.MustCompile(`(?m)^### (Outbox\w+)$`)

// Each alert says whom it calls, what is wrong, with the number, and where to look. Each has a runbook, and each runbook an alert.
func TestAlerts(t *testing.T) {
	t.Parallel()
	const pages = "https://github.com/pyairtable-compose/outbox-cdc/blob/main/docs/"
	var alerts []string
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		if slices.Contains(alerts, r.Alert) || !strings.HasPrefix(r.Alert, "Outbox") {
			t.Errorf("%s is there twice, or has another name than the others", r.Alert)
		}
		alerts = append(alerts, r.Alert)
		if severity := r.Labels["severity"]; len(r.Labels) != 1 || severity != "page" && severity != "ticket" {
			t.Errorf("%s has the labels %v", r.Alert, r.Labels)
		}
		dashboard := "{{ $externalLabels.grafana }}/d/" + dashboardUID(defaultPrefix) + "?var-job={{ $labels.job | urlquery }}"
		if strings.Contains(r.Annotations["summary"], "$labels.sink") {
			dashboard += "&var-sink={{ $labels.sink | urlquery }}"
		}
		for name, ok := range map[string]bool{
			"summary":     strings.HasSuffix(r.Annotations["summary"], ".") && strings.Contains(r.Annotations["summary"], "$labels."),
			"description": strings.HasSuffix(r.Annotations["description"], ".") && strings.Contains(r.Annotations["description"], "$value"),
			"dashboard":   r.Annotations["dashboard"] == dashboard,
			"runbook_url": r.Annotations["runbook_url"] == pages+"operations.md#"+strings.ToLower(r.Alert),
		} {
			if !ok {
				t.Errorf("%s has the %s %q", r.Alert, name, r.Annotations[name])
			}
		}
		checkLink(t, r.Alert, r.Annotations["runbook_url"])
		if len(r.Annotations) != 4 {
			t.Errorf("%s has the annotations %v", r.Alert, r.Annotations)
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range runbookHeading.FindAllStringSubmatch(string(page), -1) {
		if !slices.Contains(alerts, m[1]) {
			t.Errorf("there is a runbook of %s, and no such alert", m[1])
		}
	}
}

var (
	selector  = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}`)
	matcher   = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`)
	labelList = regexp.MustCompile(`\b(?:by|on|ignoring|without)\s*\(([^)]*)\)`)
)

// foreignLabels says what a rule looks for by labels or values that a metric does not have.
func foreignLabels(expr string) (foreign []string) {
	labels := []string{"namespace", "job", "instance", "le"}
	values := map[string][]string{"status": {"pending", "parked", "delivered", "failed", "dead", "extended", "unreserved", "lost"}}
	for _, s := range States() {
		values["state"] = append(values["state"], string(s))
	}
	values["stage"] = []string{StageDecode, StageQueue, StageDeliver, StageRecord, StageConfirm}
	values["within"] = []string{"true", "false"}
	for _, f := range families() {
		labels = append(labels, f.Labels...)
	}
	for _, m := range labelList.FindAllStringSubmatch(expr, -1) {
		for label := range strings.SplitSeq(m[1], ",") {
			if label = strings.TrimSpace(label); !slices.Contains(labels, label) {
				foreign = append(foreign, label)
			}
		}
	}
	for _, s := range selector.FindAllStringSubmatch(expr, -1) {
		i := slices.IndexFunc(families(), func(f Family) bool {
			return slices.Contains([]string{f.Name, f.Name + "_bucket", f.Name + "_count", f.Name + "_sum"}, strings.TrimPrefix(s[1], defaultPrefix))
		})
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			if i < 0 || !slices.Contains(families()[i].Labels, m[1]) {
				foreign = append(foreign, s[1]+"{"+m[1]+"}")
			}
			for value := range strings.SplitSeq(m[2], "|") {
				if known, ok := values[m[1]]; ok && !slices.Contains(known, value) {
					foreign = append(foreign, m[1]+"="+value)
				}
			}
		}
	}
	return foreign
}

// Rules use metrics and labels that exist.
func TestRulesAndTheCatalogue(t *testing.T) {
	t.Parallel()
	records := recordingRules(t)
	var used strings.Builder
	for _, r := range readRules(t) {
		used.WriteString(r.Expr + "\n")
		if what := objection(r.Expr, records); what != "" {
			t.Errorf("%s%s: %s", r.Alert, r.Record, what)
		}
		if foreign := foreignLabels(r.Expr); foreign != nil {
			t.Errorf("%s%s: there is no label or value %q", r.Alert, r.Record, foreign)
		}
	}
	for _, name := range records {
		if !strings.Contains(used.String(), name) {
			t.Errorf("no rule uses %s", name)
		}
	}
	for expr, want := range map[string]string{
		`sum by (namespace, job) (pyairtable_outbox_leader)`: "",
		`sum by (pod) (pyairtable_outbox_leader)`:            "pod",
		`pyairtable_outbox_leader{sink="a"}`:                 "pyairtable_outbox_leader{sink}",
		`pyairtable_outbox_sink_state{state=~"away|asleep"}`: "state=asleep",
	} {
		if got := strings.Join(foreignLabels(expr), " "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// A name of a metric in the text of a page, perhaps with a label.
var namedMetric = regexp.MustCompile("`([a-z_]+_(?:total|seconds|bytes|events|info|state|letters|aggregates))(?:\\{([^`]*)\\})?`")

// The runbooks name metrics that exist.
func TestRunbooksAndTheCatalogue(t *testing.T) {
	t.Parallel()
	for _, page := range []string{"operations.md", "alerts.md", "slot.md", "table.md", "parked.md", "retention.md", "numbers.md"} {
		text, err := os.ReadFile(filepath.Join("..", "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range namedMetric.FindAllStringSubmatch(string(text), -1) {
			i := slices.IndexFunc(families(), func(f Family) bool { return f.Name == m[1] })
			for label := range strings.SplitSeq(m[2], ",") {
				label, _, _ = strings.Cut(label, "=")
				if i < 0 || label != "" && !slices.Contains(families()[i].Labels, label) {
					t.Errorf("docs/%s: there is no metric %s", page, strings.Trim(m[0], "`"))
				}
			}
		}
	}
}

// promtool finds nothing wrong with the rules, also where the metrics have another prefix.
func TestRulesAreWellFormed(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other.yml")
	if err := os.WriteFile(other, bytes.ReplaceAll(text, []byte(defaultPrefix), nil), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{rulesFile, other} {
		if _, err := servers.Promtool(t.Context(), nil, "check", "rules", path); err != nil {
			t.Error(err)
		}
	}
}

// Each alert fires in its situation, and neither before it nor just below its limit. Each file has such situations.
func TestRules(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("rules/testdata/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%q, %v", files, err)
	}
	var all strings.Builder
	for _, path := range append(files, rulesFile) {
		text, err := os.ReadFile(path) // "go test" runs this test again when a file has changed that it has read
		if err != nil {
			t.Fatal(err)
		}
		if path != rulesFile {
			all.Write(text)
		}
	}
	for _, r := range readRules(t) {
		if r.Alert != "" && !strings.Contains(all.String(), `alertname: `+r.Alert+"\n") {
			t.Errorf("no test sees %s fire with its text", r.Alert)
		}
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			if _, err := servers.Promtool(t.Context(), nil, "test", "rules", path); err != nil {
				t.Error(err)
			}
		})
	}
}
