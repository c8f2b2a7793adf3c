package ship

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const chart = "deploy/helm/outbox-cdc"

// chartSchema is as much of a JSON Schema as these tests look at.
type chartSchema struct {
	Ref                  string                  `json:"$ref"`
	Definitions          map[string]*chartSchema `json:"definitions"`
	Type                 any                     `json:"type"`
	AdditionalProperties any                     `json:"additionalProperties"`
	Properties           map[string]*chartSchema `json:"properties"`
}

func readChartSchema(t *testing.T) *chartSchema {
	t.Helper()
	s := new(chartSchema)
	if err := json.Unmarshal([]byte(readFile(t, chart+"/values.schema.json")), s); err != nil {
		t.Fatal(err)
	}
	return s
}

// chartValues are the single values of values.yaml, by their paths. A map that the schema leaves open is one value.
func chartValues(t *testing.T) map[string]any {
	t.Helper()
	var values map[string]any
	if err := yaml.Unmarshal([]byte(readFile(t, chart+"/values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	all := map[string]any{}
	var walk func(prefix string, s *chartSchema, v map[string]any)
	walk = func(prefix string, s *chartSchema, v map[string]any) {
		for key, value := range v {
			path := prefix + key
			p := s.Properties[key]
			if p == nil {
				t.Errorf("values.schema.json does not know %s of values.yaml", path)
				continue
			}
			if inner, ok := value.(map[string]any); ok && len(p.Properties) > 0 {
				walk(path+".", p, inner)
			} else {
				all[path] = value
			}
		}
		for key := range s.Properties {
			if _, ok := v[key]; !ok && prefix+key != "global" { // Helm adds global by itself
				t.Errorf("values.yaml has no %s, which values.schema.json allows", prefix+key)
			}
		}
	}
	walk("", readChartSchema(t), values)
	return all
}

// TestChartValues: values.yaml, its schema and the table of the chart's README name the same values with the same defaults.
func TestChartValues(t *testing.T) {
	t.Parallel()
	values := chartValues(t)
	_, table, found := strings.Cut(readFile(t, chart+"/README.md"), "\n## Values\n")
	if !found {
		t.Fatal("the README has no section of values")
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1) {
		rows[m[1]] = m[2]
	}
	for _, path := range slices.Sorted(maps.Keys(values)) {
		want := fmt.Sprint(values[path])
		if _, ok := values[path].(string); !ok || want == "" {
			b, err := json.Marshal(values[path])
			if err != nil {
				t.Fatal(err)
			}
			want = string(b)
		}
		if got, ok := rows[path]; !ok || got != want {
			t.Errorf("README: %s has the default %q, and should have %q", path, got, want)
		}
		delete(rows, path)
	}
	if len(rows) > 0 {
		t.Errorf("README: there are no values %v", rows)
	}
}

// TestChartOutboxKeys: the README explains each key that an outbox may have.
func TestChartOutboxKeys(t *testing.T) {
	t.Parallel()
	_, text, _ := strings.Cut(readFile(t, chart+"/README.md"), "\n## An outbox\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for key, s := range readChartSchema(t).Definitions["outbox"].Properties {
		if len(s.Properties) == 0 && !strings.Contains(text, "`"+key+"`") {
			t.Errorf("README: nothing is said of %s", key)
		}
		for inner := range s.Properties {
			if !strings.Contains(text, "`"+key+"."+inner+"`") && !strings.Contains(text, "`"+inner+"`") {
				t.Errorf("README: nothing is said of %s.%s", key, inner)
			}
		}
	}
}

// TestChartFiles: alerts and dashboard in the chart are those of the repository, and no copies that somebody would have to keep.
func TestChartFiles(t *testing.T) {
	t.Parallel()
	for link, file := range map[string]string{
		"files/outbox-alerts.yml":      "monitoring/rules/outbox-alerts.yml",
		"files/outbox-monitoring.json": "monitoring/grafana/dashboards/outbox/outbox-monitoring.json",
	} {
		got, err := os.Stat(filepath.Join(root, chart, link))
		if err != nil {
			t.Error(err)
			continue
		}
		want, err := os.Stat(filepath.Join(root, file))
		if err != nil {
			t.Error(err)
			continue
		}
		if !os.SameFile(got, want) {
			t.Errorf("%s is no link to %s", link, file)
		}
	}
}

// TestChart renders the chart by Helm 3 and 4 and decodes it by the types of Kubernetes, in a module of its own.
func TestChart(t *testing.T) {
	needsLong(t)
	testModule(t, "chart")
}

// testModule runs the tests of a module below this package.
func testModule(t *testing.T, dir string) {
	t.Helper()
	c := exec.Command("go", "test", "-count=1", "./...")
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
