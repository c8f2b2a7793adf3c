package chart

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	common4 "helm.sh/helm/v4/pkg/chart/common"
	util4 "helm.sh/helm/v4/pkg/chart/common/util"
	loader4 "helm.sh/helm/v4/pkg/chart/v2/loader"
	engine4 "helm.sh/helm/v4/pkg/engine"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

const (
	root     = "../../.."
	chartDir = root + "/deploy/helm/outbox-cdc"
	release  = "orders"
	space    = "shop"
)

// Helm says of each link in the chart that it follows it.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// values reads a file of values. Those in the chart's directory ci are the matrix of the tests.
func values(t testing.TB, text string) map[string]any {
	t.Helper()
	v := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// render renders the chart by the library of Helm 3.
func render(t testing.TB, v map[string]any) (map[string]string, error) {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(c, v, chartutil.ReleaseOptions{Name: release, Namespace: space, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// render4 renders it by that of Helm 4.
func render4(t testing.TB, v map[string]any) (map[string]string, error) {
	t.Helper()
	c, err := loader4.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := util4.ToRenderValues(c, v, common4.ReleaseOptions{Name: release, Namespace: space, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, err
	}
	return engine4.Render(c, all)
}

// manifests are the objects of a rendered chart, by kind.
type manifests struct {
	configMaps  []*core.ConfigMap
	accounts    []*core.ServiceAccount
	pods        []*core.Pod
	deployments []*apps.Deployment
	jobs        []*batch.Job
	budgets     []*policy.PodDisruptionBudget
	policies    []*networking.NetworkPolicy
	monitors    []*monitoring.PodMonitor
	rules       []*monitoring.PrometheusRule
}

var separator = regexp.MustCompile(`(?m)^---\s*$`)

// decode decodes all documents. A field that the API of its kind does not have is an error, and so is one that is given twice.
func decode(t testing.TB, files map[string]string) manifests {
	t.Helper()
	var m manifests
	names := map[string]bool{}
	for file, text := range files {
		if path.Ext(file) != ".yaml" {
			continue
		}
		for _, doc := range separator.Split(text, -1) {
			if strings.TrimSpace(regexp.MustCompile(`(?m)^\s*#.*$`).ReplaceAllString(doc, "")) == "" {
				continue
			}
			kind, name := m.add(t, file, []byte(doc))
			if names[kind+" "+name] {
				t.Errorf("two objects are called %s %s", kind, name)
			}
			names[kind+" "+name] = true
		}
	}
	return m
}

func (m *manifests) add(t testing.TB, file string, doc []byte) (kind, name string) {
	t.Helper()
	var head struct {
		APIVersion, Kind string
		Metadata         struct {
			Name, Namespace string
			Labels          map[string]string
		}
	}
	if err := yaml.Unmarshal(doc, &head); err != nil {
		t.Fatalf("%s: %v\n%s", file, err, doc)
	}
	if head.Metadata.Namespace != space {
		t.Errorf("%s: %s %s is in the namespace %q", file, head.Kind, head.Metadata.Name, head.Metadata.Namespace)
	}
	if len(head.Metadata.Name) > 63 {
		t.Errorf("%s: the name %s is too long", file, head.Metadata.Name)
	}
	for _, label := range []string{"app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"} {
		if head.Metadata.Labels[label] == "" {
			t.Errorf("%s: %s has no label %s", file, head.Metadata.Name, label)
		}
	}
	kind = head.APIVersion + " " + head.Kind
	switch kind {
	case "v1 ConfigMap":
		strict(t, file, doc, &m.configMaps)
	case "v1 ServiceAccount":
		strict(t, file, doc, &m.accounts)
	case "v1 Pod":
		strict(t, file, doc, &m.pods)
	case "apps/v1 Deployment":
		strict(t, file, doc, &m.deployments)
	case "batch/v1 Job":
		strict(t, file, doc, &m.jobs)
	case "policy/v1 PodDisruptionBudget":
		strict(t, file, doc, &m.budgets)
	case "networking.k8s.io/v1 NetworkPolicy":
		strict(t, file, doc, &m.policies)
	case "monitoring.coreos.com/v1 PodMonitor":
		strict(t, file, doc, &m.monitors)
	case "monitoring.coreos.com/v1 PrometheusRule":
		strict(t, file, doc, &m.rules)
	default:
		t.Errorf("%s: no type is known here for %s", file, kind)
	}
	return kind, head.Metadata.Name
}

// strict appends the decoded document to list.
func strict[T any](t testing.TB, file string, doc []byte, list *[]*T) {
	t.Helper()
	object := new(T)
	if err := yaml.UnmarshalStrict(doc, object); err != nil {
		t.Errorf("%s: %v\n%s", file, err, doc)
	}
	*list = append(*list, object)
}

// matrix are the values of the chart's directory ci, by the name of the file.
func matrix(t testing.TB) map[string]map[string]any {
	t.Helper()
	entries, err := os.ReadDir(chartDir + "/ci")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]map[string]any{}
	for _, e := range entries {
		m[strings.TrimSuffix(e.Name(), "-values.yaml")] = values(t, readFile(t, chartDir+"/ci/"+e.Name()))
	}
	return m
}

// TestBothHelms: Helm 3 and 4 make the same of the chart, and read its rules and dashboard through the links.
func TestBothHelms(t *testing.T) {
	for name, v := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			three, err := render(t, v)
			if err != nil {
				t.Fatal(err)
			}
			four, err := render4(t, v)
			if err != nil {
				t.Fatal(err)
			}
			for file, text := range three {
				if four[file] != text {
					t.Errorf("%s: Helm 3 makes\n%s\nand Helm 4\n%s", file, text, four[file])
				}
			}
			if len(four) != len(three) {
				t.Errorf("Helm 3 makes %d files, and Helm 4 %d", len(three), len(four))
			}
			decode(t, three)
		})
	}
}

// TestRefused: what is wrong with values is said by both, before anything is installed.
func TestRefused(t *testing.T) {
	const sound = `
name: shop
database: {existingSecret: shop}
config: {sinks: [{type: stdout}]}`
	outbox := func(changes string) string {
		o := values(t, sound)
		for k, v := range values(t, changes) {
			o[k] = v
		}
		b, err := yaml.Marshal(map[string]any{"outboxes": []any{o}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, c := range map[string]struct{ values, want string }{
		"no outbox":               {"{}", "outboxes is empty; name at least one"},
		"an unknown key":          {"replica: 2", "replica"},
		"an unknown key of one":   {outbox("secret: x"), "secret"},
		"no config":               {"outboxes: [{name: shop}]", "config"},
		"a name that is none":     {outbox("name: Shop"), "name"},
		"a name that is too long": {outbox("name: a-name-that-is-too-long"), "name"},
		"the name of a hook":      {outbox("name: shop-init"), "shop-init cannot be a name"},
		"a password":              {"outboxes: [{name: shop, config: {source: {dsn: 'postgres://u:geheim@db/shop'}}}]", "the config of shop holds a password or another secret (a connection string)"},
		"a password as a word":    {"outboxes: [{name: shop, config: {source: {dsn: 'host=db user=u password=geheim'}}}]", "(a connection string)"},
		"a password of a sink":    {outbox("config: {sinks: [{type: stdout}, {type: kafka, sasl: {password: geheim}}]}"), "(sinks[1].sasl.password)"},
		"a password of Redis":     {outbox("config: {sinks: [{type: redis_stream, password: geheim}]}"), "(sinks[0].password)"},
		"a secret":                {outbox("config: {sinks: [{type: webhook, secret: geheim}]}"), "(sinks[0].secret)"},
		"one of two secrets":      {outbox("config: {sinks: [{type: webhook, secret: ['${A}', geheim, '${B}']}]}"), "(sinks[0].secret)"},
		"a header":                {outbox("config: {sinks: [{type: webhook, headers: {X-Key: geheim}}]}"), "(sinks[0].headers.X-Key)"},
		"a token of NATS":         {outbox("config: {sinks: [{type: event_bus, url: 'nats://geheim@bus:4222'}]}"), "(sinks[0].url)"},
		"a header of traces":      {outbox("config: {tracing: {headers: {api-key: geheim}}}"), "(tracing.headers.api-key)"},
		"an address to listen":    {outbox("config: {http: {listen: ':80'}}"), "has a config.http.listen"},
		"no metrics":              {"podMonitor: {enabled: true}\n" + outbox("config: {metrics: {enabled: false}}"), "podMonitor would find nothing"},
		"two connection strings":  {outbox("config: {source: {dsn: 'postgres://db/shop'}}"), "both database.existingSecret and config.source.dsn"},
		"the same name":           {"outboxes: [{name: a, config: {}}, {name: a, config: {}}]", "two of them are called a"},
		"the same slot": {"outboxes: [{name: a, database: {existingSecret: s}, config: {}}, {name: b, database: {existingSecret: s}, config: {}}]",
			"the same secret and the same slot"},
		"another prefix":       {"prometheusRule: {enabled: true}\n" + outbox("config: {metrics: {prefix: x_}}"), "outbox-cdc monitoring alerts --prefix x_"},
		"a limit of memory":    {outbox("resources: {limits: {memory: 1e9}}"), ""},
		"a drain of days":      {outbox("config: {delivery: {drain_timeout: 1d}}"), "set terminationGracePeriodSeconds"},
		"a digest that is no":  {"image: {digest: latest}\n" + outbox("{}"), "digest"},
		"a tag with a colon":   {"image: {tag: '1:2'}\n" + outbox("{}"), "tag"},
		"a name in capitals":   {"fullnameOverride: Shop\n" + outbox("{}"), "fullnameOverride"},
		"sinks by name":        {outbox("config: {sinks: {events: {type: stdout}}}"), "sinks"},
		"metrics as a switch":  {"podMonitor: {enabled: true}\n" + outbox("config: {metrics: off}"), "metrics"},
		"sasl as a word":       {outbox("config: {sinks: [{type: kafka, sasl: plain}]}"), "sasl"},
		"a word for interval":  {"podMonitor: {interval: soon}\n" + outbox("{}"), "interval"},
		"a bare interval":      {"podMonitor: {interval: '15'}\n" + outbox("{}"), "interval"},
		"no timeout":           {"podMonitor: {scrapeTimeout: 0s}\n" + outbox("{}"), "scrapeTimeout"},
		"a long timeout":       {"podMonitor: {interval: 1m, scrapeTimeout: 1m1s}\n" + outbox("{}"), "podMonitor.scrapeTimeout (1m1s) is longer than podMonitor.interval (1m)"},
		"a label of the chart": {"commonLabels: {app.kubernetes.io/name: shop}\n" + outbox("{}"), "/commonLabels/app.kubernetes.io~1name"},
		"a label of its pods":  {"podLabels: {app.kubernetes.io/component: shop}\n" + outbox("{}"), "/podLabels/app.kubernetes.io~1component"},
		"a label with a space": {"podMonitor: {labels: {team: the shop}}\n" + outbox("{}"), "/podMonitor/labels/team"},
		"a level":              {"log: {level: loud}\n" + outbox("{}"), "level"},
	} {
		t.Run(name, func(t *testing.T) {
			v := values(t, c.values)
			_, err := render(t, v)
			if err == nil {
				t.Fatal("Helm 3 takes it")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("Helm 3 says %v", err)
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Errorf("the password is in %v", err)
			}
			if _, err := render4(t, v); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Helm 4 says %v", err)
			}
		})
	}
}

// TestComputed: what the chart makes of a limit of memory and of the time that a drain may take.
func TestComputed(t *testing.T) {
	for _, c := range []struct {
		memory, drain, limit string
		grace                int64
	}{
		{"256Mi", "", "230MiB", 40},
		{"1Gi", "60s", "921MiB", 75},
		{"1.5Gi", "1m30s", "1382MiB", 105},
		{"500M", "500ms", "429MiB", 16},
	} {
		v := values(t, `outboxes: [{name: shop, resources: {limits: {memory: `+c.memory+`}}, config: {sinks: [{type: stdout}]}}]`)
		if c.drain != "" {
			v["outboxes"].([]any)[0].(map[string]any)["config"].(map[string]any)["delivery"] = map[string]any{"drain_timeout": c.drain}
		}
		files, err := render(t, v)
		if err != nil {
			t.Fatal(err)
		}
		pod := decode(t, files).deployments[0].Spec.Template.Spec
		if got := *pod.TerminationGracePeriodSeconds; got != c.grace {
			t.Errorf("drain_timeout %q makes a grace period of %d s, not %d", c.drain, got, c.grace)
		}
		env := pod.Containers[0].Env
		i := slices.IndexFunc(env, func(e core.EnvVar) bool { return e.Name == "GOMEMLIMIT" })
		if i < 0 || env[i].Value != c.limit {
			t.Errorf("a limit of %s makes %v, not %s", c.memory, env, c.limit)
		}
	}
}

// TestFilesAreTheRepositorys: the rules and the dashboard in the chart are those of the repository, byte by byte.
func TestFilesAreTheRepositorys(t *testing.T) {
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"files/outbox-alerts.yml":      root + "/monitoring/rules/outbox-alerts.yml",
		"files/outbox-monitoring.json": root + "/monitoring/grafana/dashboards/outbox/outbox-monitoring.json",
	}
	for _, f := range c.Files {
		if source, ok := want[f.Name]; ok && !bytes.Equal(f.Data, []byte(readFile(t, source))) {
			t.Errorf("%s differs from %s", f.Name, source)
		}
		delete(want, f.Name)
	}
	if len(want) > 0 {
		t.Errorf("the chart lacks %v", want)
	}
}
