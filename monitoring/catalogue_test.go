package monitoring

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
)

// Each row of the table is whole, its name and unit keep Prometheus's conventions, and no two rows have a name.
func TestCatalogue(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	seen := map[string]bool{}
	for _, f := range families() {
		if seen[f.Name] {
			t.Errorf("%s is there twice", f.Name)
		}
		seen[f.Name] = true
		if !name.MatchString(f.Name) || f.Unit == "" || !strings.HasSuffix(f.Help, ".") || !strings.HasSuffix(f.Investigate, ".") {
			t.Errorf("%s is not whole: %+v", f.Name, f)
		}
		if (f.Type == Counter) != strings.HasSuffix(f.Name, "_total") {
			t.Errorf("%s is a %s", f.Name, f.Type)
		}
		if (f.Type == Histogram) != (f.buckets != nil) || f.Type == Histogram && f.collect != nil {
			t.Errorf("%s is a %s, with buckets %v", f.Name, f.Type, f.buckets)
		}
		for _, unit := range []string{"seconds", "bytes"} {
			if strings.Contains(strings.TrimSuffix(f.Name, "_total")+"/", "_"+unit+"/") != strings.HasPrefix(f.Unit, unit) {
				t.Errorf("%s is in %s", f.Name, f.Unit)
			}
		}
		if slices.Contains(f.Labels, "") || slices.ContainsFunc(f.Labels, func(l string) bool {
			return slices.Contains([]string{"aggregate_type", "aggregate_id", "event_type", "tenant_id", "topic"}, l)
		}) {
			t.Errorf("%s has the labels %v", f.Name, f.Labels)
		}
	}
}

// NewMetrics makes what no Status has, and nothing else.
func TestMetricsOfTheCatalogue(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	NewMetrics("p_", reg)
	for _, f := range families() {
		err := reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "p_" + f.Name, Help: "another"}, func() float64 { return 0 }))
		if registered := err != nil; registered != (f.collect == nil) {
			t.Errorf("%s: registered by NewMetrics: %t, collected from Status: %t", f.Name, registered, f.collect != nil)
		}
	}
}

const metricsPage = "../docs/metrics.md"

func TestMetricsPage(t *testing.T) {
	t.Parallel()
	var page bytes.Buffer
	if err := WriteMetricsPage(&page, "pyairtable_outbox_"); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(metricsPage, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, page.Bytes()) {
		t.Error("docs/metrics.md is not what the table of metrics makes; go test ./monitoring -update writes it")
	}
}

// The metric says what the command version says.
func TestBuildInfo(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector("p_", func() Status { return Status{} }))
	v := buildinfo.Read()
	want := `# HELP p_build_info 1; the labels say which build of outbox-cdc this is. An empty commit or date of it is not known.
# TYPE p_build_info gauge
p_build_info{commit="` + v.Commit + `",commit_date="` + v.Time + `",go_version="` + v.Go + `",version="` + v.Version + `"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "p_build_info"); err != nil {
		t.Error(err)
	}
}
