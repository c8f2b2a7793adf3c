package ship

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

const composeDir = "deploy/compose"

// composeFile is as much of the compose file as these tests look at. The loader of the specification reads all of it: TestCompose.
type composeFile struct {
	Services map[string]composeService `yaml:"services"`
}

type composeService struct {
	Image       string            `yaml:"image"`
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	Volumes     []string          `yaml:"volumes"`
}

// mounts are the files and directories of the repository that the service sees, by their paths in the container.
func (s composeService) mounts() map[string]string {
	all := map[string]string{}
	for _, v := range s.Volumes {
		if source, target, _ := strings.Cut(strings.TrimSuffix(v, ":ro"), ":"); strings.HasPrefix(source, ".") {
			all[target] = path.Join(composeDir, source)
		}
	}
	return all
}

func readCompose(t *testing.T) map[string]composeService {
	t.Helper()
	var f composeFile
	if err := yaml.Unmarshal([]byte(readFile(t, composeDir+"/compose.yaml")), &f); err != nil {
		t.Fatal(err)
	}
	return f.Services
}

// connectors are the services that run a connector, in order.
func connectors(services map[string]composeService) []string {
	var names []string
	for name, s := range services {
		if len(s.Command) > 0 && s.Command[0] == "run" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// readStrict decodes a file. A field that to does not have is an error.
func readStrict(t *testing.T, name string, to any) {
	t.Helper()
	dec := yaml.NewDecoder(bytes.NewReader([]byte(readFile(t, name))))
	dec.KnownFields(true)
	if err := dec.Decode(to); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// prometheusFile is the configuration of the demonstration's Prometheus.
type prometheusFile struct {
	Global struct {
		ScrapeInterval     string            `yaml:"scrape_interval"`
		ScrapeTimeout      string            `yaml:"scrape_timeout"`
		EvaluationInterval string            `yaml:"evaluation_interval"`
		ExternalLabels     map[string]string `yaml:"external_labels"`
	} `yaml:"global"`
	RuleFiles     []string `yaml:"rule_files"`
	ScrapeConfigs []struct {
		JobName       string `yaml:"job_name"`
		StaticConfigs []struct {
			Targets []string `yaml:"targets"`
		} `yaml:"static_configs"`
	} `yaml:"scrape_configs"`
}

// TestComposeScrapes: Prometheus asks each connector at a name that it answers to, under one job, and has the alert rules.
func TestComposeScrapes(t *testing.T) {
	t.Parallel()
	services := readCompose(t)
	s := services["outbox-cdc"]
	var environ []string
	for k, v := range s.Environment {
		environ = append(environ, k+"="+v)
	}
	file := s.mounts()["/etc/outbox-cdc/outbox.yaml"]
	c, _, err := config.Load(root+"/"+file, environ)
	if err != nil {
		t.Fatal(err)
	}
	names := connectors(services)
	if !slices.Equal(c.HTTP.Hosts, names) {
		t.Errorf("the connectors %v answer to %v", names, c.HTTP.Hosts)
	}
	var p prometheusFile
	readStrict(t, services["prometheus"].mounts()["/etc/prometheus/prometheus.yml"], &p)
	var want []string
	for _, name := range names {
		want = append(want, name+c.HTTP.Listen)
	}
	if len(p.ScrapeConfigs) != 1 || !slices.Equal(p.ScrapeConfigs[0].StaticConfigs[0].Targets, want) {
		t.Errorf("Prometheus asks %+v, not %v under one job", p.ScrapeConfigs, want)
	}
	for _, r := range p.RuleFiles {
		if got := services["prometheus"].mounts()["/etc/prometheus/"+r]; got != "monitoring/rules/outbox-alerts.yml" {
			t.Errorf("the rules %s are %q", r, got)
		}
	}
	if len(p.RuleFiles) == 0 {
		t.Error("no rules")
	}
}

// TestComposeGrafana: the data source leads to Prometheus, and the dashboards are where the provider looks. The structs have the fields of
// Grafana's documentation of provisioning, as far as they are used here. No Grafana is had where the tests run.
func TestComposeGrafana(t *testing.T) {
	t.Parallel()
	grafana := readCompose(t)["grafana"]
	mounts := grafana.mounts()
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name, UID, Type, Access, URL string
			IsDefault                    bool `yaml:"isDefault"`
			JSONData                     struct {
				TimeInterval string `yaml:"timeInterval"`
				HTTPMethod   string `yaml:"httpMethod"`
				ManageAlerts bool   `yaml:"manageAlerts"`
			} `yaml:"jsonData"`
		}
	}
	readStrict(t, mounts["/etc/grafana/provisioning/datasources/outbox.yaml"], &sources)
	if len(sources.Datasources) != 1 {
		t.Fatalf("data sources: %+v", sources)
	}
	d := sources.Datasources[0]
	if sources.APIVersion != 1 || d.Type != "prometheus" || d.Access != "proxy" || d.URL != "http://prometheus:9090" || !d.IsDefault || !d.JSONData.ManageAlerts {
		t.Errorf("data source: %+v", sources)
	}
	var providers struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Folder, Type string
			AllowUIUpdates     bool `yaml:"allowUiUpdates"`
			Options            struct{ Path string }
		}
	}
	readStrict(t, mounts["/etc/grafana/provisioning/dashboards/outbox.yaml"], &providers)
	if len(providers.Providers) != 1 || providers.APIVersion != 1 || providers.Providers[0].Type != "file" {
		t.Fatalf("providers: %+v", providers)
	}
	dir := providers.Providers[0].Options.Path
	if mounts[dir] != "monitoring/grafana/dashboards/outbox" {
		t.Errorf("the provider looks at %s, where %q is mounted", dir, mounts[dir])
	}
	home := grafana.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if path.Dir(home) != dir {
		t.Errorf("the first page is %s", home)
	}
	readFile(t, fmt.Sprintf("%s/%s", mounts[dir], path.Base(home)))
}

// TestCompose reads the compose file by the loader of its specification, in a module of its own.
func TestCompose(t *testing.T) {
	needsLong(t)
	testModule(t, "compose")
}
