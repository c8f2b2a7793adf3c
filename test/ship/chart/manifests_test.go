package chart

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	helm3lint "helm.sh/helm/v3/pkg/lint"
	helm3support "helm.sh/helm/v3/pkg/lint/support"
	helm4lint "helm.sh/helm/v4/pkg/chart/v2/lint"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// TestLint: helm lint finds nothing in the chart, with its own values and with those of the matrix.
func TestLint(t *testing.T) {
	all := matrix(t)
	all["none"] = map[string]any{}
	for name, v := range all {
		for _, m := range helm3lint.All(chartDir, v, space, true).Messages {
			if m.Severity >= helm3support.WarningSev {
				t.Errorf("Helm 3, values %s: %v", name, m)
			}
		}
		for _, m := range helm4lint.RunAll(chartDir, v, space).Messages {
			if m.Severity >= helm3support.WarningSev {
				t.Errorf("Helm 4, values %s: %v", name, m)
			}
		}
	}
}

// podOf is what is checked of each pod that the chart makes.
type podOf struct {
	what   string
	labels map[string]string
	spec   core.PodSpec
}

func (m manifests) allPods() []podOf {
	var all []podOf
	for _, d := range m.deployments {
		all = append(all, podOf{d.Name, d.Spec.Template.Labels, d.Spec.Template.Spec})
	}
	for _, j := range m.jobs {
		all = append(all, podOf{j.Name, j.Spec.Template.Labels, j.Spec.Template.Spec})
	}
	for _, p := range m.pods {
		all = append(all, podOf{p.Name, p.Labels, p.Spec})
	}
	return all
}

// TestManifests checks what the objects are in each row of the matrix.
func TestManifests(t *testing.T) {
	binary := buildBinary(t)
	for name, v := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			files, err := render(t, v)
			if err != nil {
				t.Fatal(err)
			}
			m := decode(t, files)
			for _, p := range m.allPods() {
				checkSecurity(t, p)
				checkContainer(t, m, p, binary)
			}
			checkSelectors(t, m)
			for _, d := range m.deployments {
				c := d.Spec.Template.Spec.Containers[0]
				if c.LivenessProbe.HTTPGet.Path != "/livez" || c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.Ports[0].Name != "http" {
					t.Errorf("%s: probes %v, %v, ports %v", d.Name, c.LivenessProbe, c.ReadinessProbe, c.Ports)
				}
			}
			for _, r := range m.rules {
				checkRules(t, r.Spec)
			}
			for _, c := range m.configMaps {
				if dashboard, ok := c.Data["outbox-monitoring.json"]; ok && !json.Valid([]byte(dashboard)) {
					t.Error("the dashboard is no JSON")
				}
			}
		})
	}
}

// checkSecurity: what the restricted profile of Kubernetes asks for, and more.
func checkSecurity(t *testing.T, p podOf) {
	t.Helper()
	s := p.spec
	if s.AutomountServiceAccountToken == nil || *s.AutomountServiceAccountToken {
		t.Errorf("%s: gets a token", p.what)
	}
	sc := s.SecurityContext
	if sc == nil || !*sc.RunAsNonRoot || *sc.RunAsUser != 65532 || sc.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%s: %+v", p.what, sc)
	}
	for _, c := range s.Containers {
		cc := c.SecurityContext
		if cc == nil || *cc.AllowPrivilegeEscalation || !*cc.ReadOnlyRootFilesystem || !reflect.DeepEqual(cc.Capabilities.Drop, []core.Capability{"ALL"}) {
			t.Errorf("%s: %+v", p.what, cc)
		}
	}
}

// checkContainer: the binary takes the arguments and the configuration, with the secrets where the pod has them.
func checkContainer(t *testing.T, m manifests, p podOf, binary string) {
	t.Helper()
	c := p.spec.Containers[0]
	volumes := map[string]core.Volume{}
	for _, v := range p.spec.Volumes {
		volumes[v.Name] = v
	}
	secrets := t.TempDir()
	var config string
	for _, mount := range c.VolumeMounts {
		volume, ok := volumes[mount.Name]
		switch {
		case !ok:
			t.Errorf("%s: nothing is mounted at %s", p.what, mount.MountPath)
		case volume.ConfigMap != nil:
			for _, cm := range m.configMaps {
				if cm.Name == volume.ConfigMap.Name {
					config = cm.Data["outbox.yaml"]
				}
			}
		case mount.MountPath != "/run/secrets/outbox-cdc/"+volume.Secret.SecretName:
			t.Errorf("%s: %s is mounted at %s", p.what, volume.Secret.SecretName, mount.MountPath)
		default:
			if err := os.MkdirAll(filepath.Join(secrets, volume.Secret.SecretName), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	if config == "" {
		t.Fatalf("%s: no configuration", p.what)
	}
	// The files of secrets that are mounted. One that is not mounted stays where nothing is, and validate refuses it.
	for _, ref := range regexp.MustCompile(`\$\{file:/run/secrets/outbox-cdc/([^}]*)\}`).FindAllStringSubmatch(config, -1) {
		file := filepath.Join(secrets, ref[1])
		if _, err := os.Stat(filepath.Dir(file)); err != nil {
			continue
		}
		if err := os.WriteFile(file, []byte("postgres://localhost/shop"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(config, "/run/secrets/outbox-cdc", secrets)), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"HOME=" + t.TempDir()}
	for _, e := range c.Env {
		switch {
		case e.ValueFrom == nil:
			env = append(env, e.Name+"="+e.Value)
		case e.Name == "BILLING_REDIS":
			env = append(env, e.Name+"=redis://redis:6379")
		default:
			env = append(env, e.Name+"=postgres://localhost/shop")
		}
	}
	run(t, env, binary, "validate", "--config", file)
	if c.Args[0] != "validate" {
		args := append([]string{}, c.Args...)
		run(t, env, binary, append(args, "--help")...) // an unknown flag is refused here too
	}
}

// checkSelectors: budgets, policies and monitors find the pods of their outbox, and those alone.
func checkSelectors(t *testing.T, m manifests) {
	t.Helper()
	selectors := map[string]*meta.LabelSelector{}
	for _, b := range m.budgets {
		selectors["budget "+b.Name] = b.Spec.Selector
	}
	for _, p := range m.policies {
		selectors["policy "+p.Name] = &p.Spec.PodSelector
	}
	for _, p := range m.monitors {
		selectors["monitor "+p.Name] = &p.Spec.Selector
		if r := p.Spec.PodMetricsEndpoints[0].RelabelConfigs; len(r) != 1 || r[0].TargetLabel != "job" || *r[0].Replacement != p.Name {
			t.Errorf("%s: the job is made by %v", p.Name, r)
		}
	}
	for _, d := range m.deployments {
		selectors["deployment "+d.Name] = d.Spec.Selector
	}
	for what, s := range selectors {
		selector, err := meta.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		_, owner, _ := strings.Cut(what, " ")
		for _, p := range m.allPods() {
			if got, want := selector.Matches(labels.Set(p.labels)), p.what == owner; got != want {
				t.Errorf("%s selects %s: %t", what, p.what, got)
			}
		}
	}
}

// checkRules: Prometheus takes the rules, and they are those of the repository.
func checkRules(t *testing.T, spec any) {
	t.Helper()
	b, err := yaml.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "promtool", "check", "rules", file)
	var got, want any
	if err := yaml.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(readFile(t, root+"/monitoring/rules/outbox-alerts.yml")), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Error("the rules of the chart differ from those of the repository")
	}
}

func buildBinary(t *testing.T) string {
	t.Helper()
	binary, err := filepath.Abs(filepath.Join(t.TempDir(), "outbox-cdc"))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("go", "build", "-o", binary, "./cmd/outbox-cdc")
	c.Dir = root
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// run runs a program to its end. If env is nil, it has the environment of the test.
func run(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = env
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
}
