package monitoring

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const generator = "../tools/dashboards"

// The file is what the generator makes. The generator's module is downloaded at the first time.
func TestDashboardIsGenerated(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(generator, "*"))
	if err != nil || len(files) < 3 {
		t.Fatalf("files of the generator: %q, %v", files, err)
	}
	for _, f := range files {
		if _, err := os.ReadFile(f); err != nil { // "go test" runs this test again when a file has changed that it has read
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", "-C", generator, ".")
	// A workspace or flags for the tests are none for the generator.
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	made, err := cmd.Output()
	if err != nil {
		t.Fatalf("make dashboards: %v\n%s", err, stderr.Bytes())
	}
	if string(made) != dashboard {
		t.Error("the dashboard is not what tools/dashboards makes; make dashboards writes it")
	}
}

// grafanaDashboard is what is checked of a dashboard.
type grafanaDashboard struct {
	UID, Title string
	Panels     []grafanaPanel
	Templating struct {
		List []struct{ Name, Query string }
	}
	Annotations struct{ List []struct{ Name, Expr string } }
	Links       []struct{ URL string }
}

type grafanaPanel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Targets                  []struct{ RefID, Expr string }
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Links                    []struct{ URL string }
}

func readDashboard(t *testing.T, prefix string) (d grafanaDashboard) {
	t.Helper()
	var text bytes.Buffer
	if err := WriteDashboard(&text, prefix); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Every expression uses metrics that exist, every panel is whole, and no two of them share an id or a place.
func TestDashboard(t *testing.T) {
	t.Parallel()
	d := readDashboard(t, defaultPrefix)
	check := func(where, expr string) {
		if what := objection(expr, recordingRules(t)); what != "" {
			t.Errorf("%s: %s: %s", where, expr, what)
		}
	}
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 {
			t.Errorf("%s: another panel has the id %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok || x >= 24 {
					t.Fatalf("%s is in the place of %s, or beyond the right edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 || len(p.Links) == 0 ||
			!strings.Contains(p.Description, "**Good:** ") || !strings.Contains(p.Description, "**Otherwise:** ") {
			t.Errorf("%q lacks a title, a unit, a query, a link, or what is good and what to do: %q", p.Title, p.Description)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if refs[q.RefID] {
				t.Errorf("%s: another query is called %s", p.Title, q.RefID)
			}
			refs[q.RefID] = true
			check(p.Title, q.Expr)
			if !strings.Contains(q.Expr, `job="$job"`) && !strings.Contains(q.Expr, "ALERTS") {
				t.Errorf("%s: %s: shows all jobs", p.Title, q.Expr)
			}
			if ranges := regexp.MustCompile(`(rate|increase)\([^[]*\[([^\]]*)\]`).FindAllStringSubmatch(q.Expr, -1); len(ranges) > 0 && ranges[0][2] != "$__rate_interval" {
				t.Errorf("%s: %s: a rate of a fixed interval", p.Title, q.Expr)
			}
		}
		for _, l := range p.Links {
			checkLink(t, p.Title, l.URL)
		}
	}
	for _, a := range d.Annotations.List {
		check(a.Name, a.Expr)
	}
	var names []string
	for _, v := range d.Templating.List {
		names = append(names, v.Name)
		if _, query, ok := strings.Cut(v.Query, "("); ok {
			check(v.Name, query[:strings.LastIndex(query, ",")])
		}
	}
	if got := strings.Join(names, " "); got != "datasource job instance sink" {
		t.Errorf("variables %s", got)
	}
	for _, l := range d.Links {
		checkLink(t, "dashboard", l.URL)
	}
}

// checkLink checks that a link of a dashboard leads to a page of docs, and to an anchor that is there.
func checkLink(t *testing.T, where, url string) {
	t.Helper()
	page, ok := strings.CutPrefix(url, "https://github.com/pyairtable-compose/outbox-cdc/blob/main/docs/")
	page, anchor, _ := strings.Cut(page, "#")
	text, err := os.ReadFile(filepath.Join("..", "docs", page))
	if !ok || err != nil {
		t.Errorf("%s: %s is no page of docs: %v", where, url, err)
		return
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if anchor == "" || strings.Contains(line, `<a id="`+anchor+`">`) || strings.HasPrefix(line, "#") && slug(line) == anchor {
			return
		}
	}
	t.Errorf("%s: %s: the page has no such anchor", where, url)
}

// slug is the anchor that GitHub makes of a heading.
func slug(heading string) string {
	text := strings.ToLower(strings.TrimSpace(strings.TrimLeft(heading, "#")))
	text = regexp.MustCompile(`<[^>]*>|[^a-z0-9 _-]`).ReplaceAllString(text, "")
	return strings.ReplaceAll(text, " ", "-")
}

// recordingRules are the names of the recording rules.
func recordingRules(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("rules/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\s*-?\s*record: (\S+)$`).FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// The dashboard of another prefix shows metrics of that prefix only, and may stand beside the others in one Grafana.
func TestDashboardOfAnotherPrefix(t *testing.T) {
	t.Parallel()
	uids := map[string]string{}
	for _, prefix := range []string{defaultPrefix, "", "orders_", "orders", strings.Repeat("long_", 30) + "a_", strings.Repeat("long_", 30) + "b_"} {
		d := readDashboard(t, prefix)
		if other, ok := uids[d.UID]; ok || len(d.UID) > 40 {
			t.Errorf("%q has the uid %s, which is too long or that of %q", prefix, d.UID, other)
		}
		uids[d.UID] = prefix
		if prefix == defaultPrefix {
			if d.UID != "outbox-cdc" || d.Title != "Outbox" {
				t.Errorf("uid %s, title %s", d.UID, d.Title)
			}
			continue
		}
		if d.Title != strings.TrimSpace("Outbox "+prefix) {
			t.Errorf("%q: title %s", prefix, d.Title)
		}
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				for _, name := range metricNames(q.Expr) {
					if strings.HasPrefix(name, defaultPrefix) || !strings.HasPrefix(name, prefix) && strings.Contains(name, "slot") {
						t.Errorf("%q: %s: %s", prefix, p.Title, name)
					}
				}
			}
		}
	}
}

// The rules of another prefix are about metrics of that prefix only, their recording rules have names of their own and lead to the
// dashboard of that prefix.
func TestRulesOfAnotherPrefix(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"", "orders_"} {
		var text bytes.Buffer
		if err := WriteRules(&text, prefix); err != nil {
			t.Fatal(err)
		}
		var file struct {
			Groups []struct {
				Rules []struct {
					Record, Alert, Expr string
					Annotations         map[string]string
				}
			}
		}
		if err := yaml.Unmarshal(text.Bytes(), &file); err != nil || len(file.Groups) == 0 {
			t.Fatalf("%q: %d groups, %v", prefix, len(file.Groups), err)
		}
		for _, g := range file.Groups {
			for _, r := range g.Rules {
				for _, name := range append(metricNames(r.Expr), r.Record) {
					wrong := strings.HasPrefix(name, defaultPrefix) || slices.Contains(recordingRules(t), name)
					if wrong {
						t.Errorf("%q: %s%s: %s", prefix, r.Record, r.Alert, name)
					}
				}
				if link := r.Annotations["dashboard"]; r.Alert != "" && !strings.Contains(link, "/d/"+dashboardUID(prefix)+"?") {
					t.Errorf("%q: %s leads to %s", prefix, r.Alert, link)
				}
			}
		}
	}
}
