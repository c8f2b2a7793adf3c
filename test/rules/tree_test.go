// Package rules holds the rules of this repository that a test can hold: which package may import which, and the rules of
// style for which no linter exists. The linters are in .golangci.yml. One way to hold each rule.
//
// Some rules have exceptions: allowed.txt lists them, each with its reason. A line that is no longer needed fails the test:
// "go test ./test/rules -update" removes it.
package rules

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/pyairtable-compose/outbox-cdc"

// root is the repository's, seen from this package.
var root = filepath.Join("..", "..")

// source is a file of Go.
type source struct {
	path string // from the root
	dir  string // of the package, from the root
	test bool
	file *ast.File
	text []byte
	// packages are the names under which the file imports packages, and their paths.
	packages map[string]string
}

// line is the number of the line at which something stands.
func (s *source) line(pos token.Pos) int { return files.Position(pos).Line }

var files = token.NewFileSet()

// paths are those of all files that belong to the repository, in order. What is not committed yet counts, what is ignored
// does not.
var paths = sync.OnceValues(func() ([]string, error) {
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	all := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	// A file that was deleted and not committed is in git's list all the same.
	all = slices.DeleteFunc(all, func(p string) bool {
		_, err := os.Lstat(filepath.Join(root, p))
		return err != nil
	})
	slices.Sort(all)
	// "go test" repeats a test when a directory has changed that it has read itself.
	for _, p := range all {
		if _, err := os.ReadDir(filepath.Join(root, path.Dir(p))); err != nil {
			return nil, err
		}
	}
	return slices.Compact(all), nil
})

func allPaths(t *testing.T) []string {
	t.Helper()
	all, err := paths()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var sources = sync.OnceValues(func() ([]*source, error) {
	all, err := paths()
	if err != nil {
		return nil, err
	}
	var parsed []*source
	for _, p := range all {
		if path.Ext(p) != ".go" || strings.Contains(p, "/testdata/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			return nil, err
		}
		s := &source{path: p, dir: path.Dir(p), test: strings.HasSuffix(p, "_test.go"), text: text, packages: map[string]string{}}
		if s.file, err = parser.ParseFile(files, p, text, parser.ParseComments|parser.SkipObjectResolution); err != nil {
			return nil, err
		}
		for _, spec := range s.file.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			name := path.Base(imported)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			s.packages[name] = imported
		}
		parsed = append(parsed, s)
	}
	return parsed, nil
})

func allSources(t *testing.T) []*source {
	t.Helper()
	all, err := sources()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// funcName names a function, or a method with the type that it belongs to.
func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	return receiver(d) + "." + d.Name.Name
}

// receiver is the name of the type that a method belongs to.
func receiver(d *ast.FuncDecl) string {
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.Name
		default:
			return "?"
		}
	}
}
