package ship

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestReleasePushesWhatIsPulled: the images that the compose file and the chart name are those that the release pushes, and so is the chart
// that the pages install.
func TestReleasePushesWhatIsPulled(t *testing.T) {
	t.Parallel()
	var release struct {
		Env struct {
			Registry string `yaml:"REGISTRY"`
		} `yaml:"env"`
	}
	decode(t, ".github/workflows/release.yml", &release)
	image := release.Env.Registry + "/outbox-cdc"
	pulled := 0
	for name, s := range readCompose(t) {
		if strings.Contains(s.Image, "outbox-cdc") {
			pulled++
			if !strings.HasPrefix(s.Image, image+":${OUTBOX_CDC_VERSION") {
				t.Errorf("compose pulls %s for %s, and the release pushes %s", s.Image, name, image)
			}
		}
	}
	if pulled == 0 {
		t.Error("compose pulls no image of the release")
	}
	if got := chartValues(t)["image.repository"]; got != image {
		t.Errorf("the chart pulls %v, and the release pushes %s", got, image)
	}
	for _, page := range []string{"docs/kubernetes.md", chart + "/README.md"} {
		if !strings.Contains(readFile(t, page), "oci://"+release.Env.Registry+"/charts/outbox-cdc") {
			t.Errorf("%s does not install the chart that the release pushes", page)
		}
	}
}

// startRegistry starts an empty registry of images.
func startRegistry(t *testing.T) (address string) {
	t.Helper()
	if _, err := exec.LookPath("docker-registry"); err != nil {
		t.Skip("it needs a registry of images: apt-get install docker-registry")
	}
	dir := t.TempDir()
	address = freeAddress(t)
	config := filepath.Join(dir, "config.yml")
	write(t, config, "version: 0.1\nstorage: {filesystem: {rootdirectory: '"+dir+"/registry'}}\nhttp: {addr: '"+address+"'}\n", 0o600)
	cmd := exec.CommandContext(t.Context(), "docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the context has ended it
	await(t, "the registry answers", func() bool {
		response, err := http.Get("http://" + address + "/v2/")
		if err != nil {
			return false
		}
		return response.Body.Close() == nil && response.StatusCode == http.StatusOK
	})
	return address
}

// manifest asks a registry for what a tag is.
func manifest(t *testing.T, address, name, tag string, into any) (digest string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v2/"+name+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s:%s: %s %v %s", name, tag, response.Status, err, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		t.Fatal(err)
	}
	return response.Header.Get("Docker-Content-Digest")
}

// script runs a script of the repository with an environment of its own.
func script(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "scripts/"+name, args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	text, err := cmd.CombinedOutput()
	return string(text), err
}

func pushedDigest(t *testing.T, kind string) string {
	t.Helper()
	return strings.TrimSpace(readFile(t, "bin/"+kind+"/digest"))
}

// distVersion is the version of what is in dist.
func distVersion(t *testing.T) string {
	t.Helper()
	var metadata struct {
		Version string `json:"version"`
	}
	text, err := os.ReadFile(artifact(t, "metadata.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &metadata); err != nil || metadata.Version == "" {
		t.Fatalf("dist/metadata.json: %v %s", err, text)
	}
	return metadata.Version
}

// TestPushImage pushes the image of dist to a registry of this machine, as a release does.
func TestPushImage(t *testing.T) {
	version := distVersion(t)
	if _, err := exec.LookPath("buildah"); err != nil || os.Geteuid() != 0 {
		t.Skip("it needs buildah, and to be root: apt-get install buildah")
	}
	registry, dir := startRegistry(t), t.TempDir()
	write(t, filepath.Join(dir, "storage.conf"), "[storage]\ndriver = 'vfs'\ngraphroot = '"+dir+"/store'\nrunroot = '"+dir+"/run'\n", 0o600)
	env := []string{"CONTAINERS_STORAGE_CONF=" + dir + "/storage.conf"}
	// A registry without TLS is refused unless one says so. buildah itself ends with 0 then.
	if text, err := script(t, env, "push-image", registry+"/team", "v"+version); err == nil || !strings.Contains(text, "was not pushed") {
		t.Errorf("a push that is refused: %v\n%s", err, text)
	}
	if text, err := script(t, env, "push-image", registry+"/team", "v"+version, "--tls-verify=false"); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	var list struct {
		Manifests []struct {
			Platform struct{ OS, Architecture string }
		}
	}
	if digest := manifest(t, registry, "team/outbox-cdc", version, &list); digest != pushedDigest(t, "image") {
		t.Errorf("the registry has %s, and bin/image/digest is %s", digest, pushedDigest(t, "image"))
	}
	platforms := ""
	for _, m := range list.Manifests {
		platforms += m.Platform.OS + "/" + m.Platform.Architecture + " "
	}
	if platforms != "linux/amd64 linux/arm64 " {
		t.Errorf("the image is for %s", platforms)
	}

	// Whoever pulls it on amd64 gets the binary of the release.
	buildah := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "buildah", args...)
		cmd.Env = append(os.Environ(), env...)
		var errors bytes.Buffer
		cmd.Stderr = &errors
		text, err := cmd.Output()
		if err != nil {
			t.Fatalf("buildah %q: %v\n%s", args, err, errors.String())
		}
		return strings.TrimSpace(string(text))
	}
	container := buildah("from", "--tls-verify=false", "--pull-always", "docker://"+registry+"/team/outbox-cdc:"+version)
	t.Cleanup(func() {
		cmd := exec.Command("buildah", "rm", "--all")
		cmd.Env = append(os.Environ(), env...)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	})
	got, err := os.ReadFile(filepath.Join(buildah("mount", container), "usr/bin/outbox-cdc"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(artifact(t, "outbox-cdc_linux_amd64*/outbox-cdc"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the binary of the image has %d bytes, and that of dist %d, or others", len(got), len(want))
	}
}

// TestPushChart packages the chart as the version of a release, pushes it to a registry of this machine, and renders what is there.
func TestPushChart(t *testing.T) {
	needsLong(t)
	const version = "12.34.56"
	registry := startRegistry(t)
	env := []string{"HELM_CACHE_HOME=" + t.TempDir(), "HELM_CONFIG_HOME=" + t.TempDir()}
	if text, err := script(t, env, "push-chart", registry+"/team", "v"+version, "--plain-http"); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	var m struct {
		Annotations map[string]string
	}
	if digest := manifest(t, registry, "team/charts/outbox-cdc", version, &m); digest != pushedDigest(t, "chart") {
		t.Errorf("the registry has %s, and bin/chart/digest is %s", digest, pushedDigest(t, "chart"))
	}
	if m.Annotations["org.opencontainers.image.version"] != version {
		t.Errorf("annotations: %v", m.Annotations)
	}
	cmd := exec.CommandContext(t.Context(), "bin/helm", "template", "cdc", "oci://"+registry+"/team/charts/outbox-cdc", "--plain-http", "--version", version,
		"--values", chart+"/ci/small-values.yaml", "--set", "prometheusRule.enabled=true,dashboard.enabled=true")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, want := range []string{
		chartValues(t)["image.repository"].(string) + ":" + version, "helm.sh/chart: outbox-cdc-" + version, "kind: PrometheusRule", "grafana_dashboard",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("what the registry has renders without %q", want)
		}
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		if err := yaml.Unmarshal([]byte(doc), new(any)); err != nil {
			t.Errorf("%v\n%s", err, doc)
		}
	}
}
