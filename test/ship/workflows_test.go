package ship

import (
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type workflow struct {
	Permissions map[string]string      `yaml:"permissions"`
	Concurrency map[string]any         `yaml:"concurrency"`
	Jobs        map[string]workflowJob `yaml:"jobs"`
}

type workflowJob struct {
	Timeout   int `yaml:"timeout-minutes"`
	Container struct {
		Image string `yaml:"image"`
	} `yaml:"container"`
	Steps []struct {
		Uses string         `yaml:"uses"`
		With map[string]any `yaml:"with"`
		Run  string         `yaml:"run"`
	} `yaml:"steps"`
}

// TestWorkflows: the workflows call targets that exist, may do no more than they must, end by themselves, and use the Go of go.mod.
func TestWorkflows(t *testing.T) {
	t.Parallel()
	var (
		targets  = regexp.MustCompile(`(?m)^[a-z-]+:`).FindAllString(readFile(t, "Makefile"), -1)
		calls    = regexp.MustCompile(`\bmake ([a-z-]+)`)
		pinned   = regexp.MustCompile(`^(actions|sigstore)/[a-z-]+@v\d+$`)
		language = regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(readFile(t, "go.mod"))[1]
		called   []string
	)
	for _, name := range glob(t, ".github/workflows/*") {
		var w workflow
		decode(t, name, &w)
		if len(w.Permissions) != 1 || w.Permissions["contents"] != "read" {
			t.Errorf("%s: a job that needs more than to read has to say so itself: %v", name, w.Permissions)
		}
		if w.Concurrency["group"] == nil {
			t.Errorf("%s: two runs of it may be beside each other", name)
		}
		for id, job := range w.Jobs {
			if job.Timeout == 0 {
				t.Errorf("%s: job %s may hang for six hours", name, id)
			}
			if image := job.Container.Image; image != "" && !strings.HasPrefix(image, "golang:"+language+"-") {
				t.Errorf("%s: job %s runs in %s, and go.mod has Go %s", name, id, image, language)
			}
			for _, step := range job.Steps {
				if step.Uses != "" && !pinned.MatchString(step.Uses) {
					t.Errorf("%s: %s is no version of an action by GitHub or Sigstore", name, step.Uses)
				}
				if version, ok := step.With["go-version"]; ok && version != language+".x" {
					t.Errorf("%s: it uses Go %v, and go.mod has %s", name, version, language)
				}
				for _, call := range calls.FindAllStringSubmatch(step.Run, -1) {
					called = append(called, call[1])
					if !slices.Contains(targets, call[1]+":") {
						t.Errorf("%s: the Makefile has no target %s", name, call[1])
					}
				}
			}
		}
	}
	for _, want := range []string{
		"test", "lint", "test-matrix", "fuzz", "govulncheck", "snapshot", "test-ship", "reproducible", "push-image", "push-chart", "image-demo",
	} {
		if !slices.Contains(called, want) {
			t.Errorf("no workflow calls make %s", want)
		}
	}
}

// TestDependabot: every module, Dockerfile and compose file is looked after, and so is every tool by its name.
func TestDependabot(t *testing.T) {
	t.Parallel()
	var config struct {
		Updates []struct {
			Ecosystem   string   `yaml:"package-ecosystem"`
			Directory   string   `yaml:"directory"`
			Directories []string `yaml:"directories"`
			Allow       []struct {
				Name string `yaml:"dependency-name"`
			} `yaml:"allow"`
		} `yaml:"updates"`
	}
	decode(t, ".github/dependabot.yml", &config)
	var got, tools []string
	for _, u := range config.Updates {
		for _, dir := range append(u.Directories, u.Directory) {
			if dir != "" {
				got = append(got, u.Ecosystem+" "+dir)
			}
		}
		for _, a := range u.Allow {
			tools = append(tools, a.Name)
		}
	}
	want := []string{"docker /deploy/image", "docker-compose /deploy/compose", "github-actions /"}
	for _, mod := range modules(t) {
		want = append(want, "gomod "+path.Join("/", path.Dir(mod)))
		for _, m := range regexp.MustCompile(`(?m)^tool (\S+)$`).FindAllStringSubmatch(readFile(t, mod), -1) {
			if !slices.ContainsFunc(tools, func(tool string) bool { return tool != "" && strings.HasPrefix(m[1]+"/", tool+"/") }) {
				t.Errorf("dependabot.yml does not allow updates of %s", m[1])
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("dependabot.yml looks after\n%q, and there is\n%q", got, want)
	}
}

// TestIssueForms: the forms have what GitHub demands of one, and ask for what a report needs.
func TestIssueForms(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"bug", "feature"} {
		file := ".github/ISSUE_TEMPLATE/" + name + ".yml"
		var form struct {
			Name        string `yaml:"name"`
			Description string `yaml:"description"`
			Body        []struct {
				Type       string         `yaml:"type"`
				ID         string         `yaml:"id"`
				Attributes map[string]any `yaml:"attributes"`
			} `yaml:"body"`
		}
		decode(t, file, &form)
		if form.Name == "" || form.Description == "" {
			t.Errorf("%s has no name or no description", file)
		}
		ids := map[string]bool{}
		for _, part := range form.Body {
			switch {
			case part.Type == "markdown" && part.Attributes["value"] != nil:
			case part.Type == "textarea" && part.Attributes["label"] != nil && part.ID != "" && !ids[part.ID]:
				ids[part.ID] = true
			default:
				t.Errorf("%s: %+v has no id of its own, or lacks its text", file, part)
			}
		}
		for _, want := range []string{"outbox-cdc version", "outbox-cdc status -o json", "outbox-cdc config effective"} {
			if !strings.Contains(readFile(t, file), want) {
				t.Errorf("%s does not ask for %s", file, want)
			}
		}
	}
}

func decode(t *testing.T, name string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(readFile(t, name)), into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// glob are the files that match, seen from the root.
func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(root + "/" + pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("nothing is named %s: %v", pattern, err)
	}
	for i, name := range names {
		names[i] = strings.TrimPrefix(filepath.ToSlash(name), root+"/")
	}
	return names
}

// modules are the go.mod files of the repository, seen from its root.
func modules(t *testing.T) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != root && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"bin", "dist", "testdata"}, d.Name())) {
			return fs.SkipDir
		}
		if d.Name() == "go.mod" {
			all = append(all, strings.TrimPrefix(filepath.ToSlash(name), root+"/"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
