package rules

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// designPages are the pages that name files and Go names of the code.
func designPages(t *testing.T) []string {
	return slices.DeleteFunc(slices.Clone(allPaths(t)), func(p string) bool {
		return p != "docs/design.md" && (path.Dir(p) != "docs/design" || path.Ext(p) != ".md")
	})
}

var (
	codeSpan   = regexp.MustCompile("`([^`]+)`")
	namedPath  = regexp.MustCompile(`^[a-z][a-z0-9_.-]*/[A-Za-z0-9_.*/-]*$`)
	dottedName = regexp.MustCompile(`^([A-Za-z_]\w*)\.([A-Za-z_]\w*)$`)
	// `a` in `b.go`, `a` (`b.go`), and `a`, `b` and `c` in `d.go`.
	namesInFile = regexp.MustCompile("((?:`[\\w.]+`(?:, | and ))*`[\\w.]+`) (?:in |\\()`([\\w/.-]+\\.go)`")
)

// configKeys are the first parts of what looks like a Go name and is a key of the configuration.
var configKeys = []string{"source", "delivery", "breaker", "retry"}

// TestDesignNamesWhatExists keeps docs/design.md and the pages below it true: every file and directory in a code span
// exists, every package.Name and Type.Member does, and a name that is said to be in a file is declared there.
func TestDesignNamesWhatExists(t *testing.T) {
	t.Parallel()
	names := readNames(t)
	example := read(t, "config/example.yml")
	tables := read(t, "migrations/004_create_outbox_tables.sql")
	for _, page := range designPages(t) {
		var prose []string
		for _, l := range markdown(t, page) {
			if !l.code {
				prose = append(prose, strings.TrimSpace(l.text))
			}
		}
		text := strings.Join(prose, " ")
		for _, m := range codeSpan.FindAllStringSubmatch(text, -1) {
			span := m[1]
			if namedPath.MatchString(span) {
				if !pathExists(t, strings.TrimSuffix(span, "/")) {
					t.Errorf("%s: there is no %s", page, span)
				}
				continue
			}
			d := dottedName.FindStringSubmatch(span)
			switch {
			case d == nil || slices.Contains([]string{".go", ".md", ".yml", ".sql"}, path.Ext(span)):
			case slices.Contains(configKeys, d[1]) && d[2] == strings.ToLower(d[2]):
				if !regexp.MustCompile(`\b` + d[2] + `:`).MatchString(example) {
					t.Errorf("%s: the configuration has no key %s", page, span)
				}
			case strings.HasPrefix(d[1], "outbox_"):
				if !regexp.MustCompile(`(?s)create table %1\$I\.` + d[1] + ` \(.*?\b` + d[2] + `\b`).MatchString(tables) {
					t.Errorf("%s: there is no column %s", page, span)
				}
			case !names.has(span, ""):
				t.Errorf("%s: there is no %s in Go", page, span)
			}
		}
		found := namesInFile.FindAllStringSubmatch(text, -1)
		for _, m := range found {
			for _, name := range codeSpan.FindAllStringSubmatch(m[1], -1) {
				if !names.has(name[1], m[2]) {
					t.Errorf("%s: %s is not in %s", page, name[1], m[2])
				}
			}
		}
		if page == "docs/design.md" && len(found) < 20 {
			t.Errorf("%s: only %d names with their files were found: are they still looked for as they are written?", page, len(found))
		}
	}
}

func read(t *testing.T, p string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, p))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pathExists reports whether a pattern fits a file, or is the directory of one.
func pathExists(t *testing.T, pattern string) bool {
	return slices.ContainsFunc(allPaths(t), func(p string) bool {
		fits, err := path.Match(pattern, p)
		if err != nil {
			t.Fatal(err)
		}
		return fits || strings.HasPrefix(p, pattern+"/")
	})
}

// goNames are the names that the code declares, as name, package.name or Type.member, with the files in which they are.
type goNames map[string][]string

// has reports whether a file declares name; any file if none is given.
func (n goNames) has(name, file string) bool {
	return len(n[name]) > 0 && (file == "" || slices.Contains(n[name], file))
}

func readNames(t *testing.T) goNames {
	t.Helper()
	names := goNames{}
	for _, s := range allSources(t) {
		add := func(name string) { names[name] = append(names[name], s.path) }
		eachTopLevel(s.file, func(name *ast.Ident, decl ast.Node) {
			add(name.Name)
			add(s.file.Name.Name + "." + name.Name)
			spec, ok := decl.(*ast.TypeSpec)
			if !ok {
				return
			}
			for _, member := range members(spec.Type) {
				add(name.Name + "." + member)
			}
		})
		for _, decl := range s.file.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Recv != nil {
				add(funcName(d))
			}
		}
	}
	return names
}

// members are the fields of a struct, or the methods of an interface.
func members(of ast.Expr) (all []string) {
	var list *ast.FieldList
	switch of := of.(type) {
	case *ast.StructType:
		list = of.Fields
	case *ast.InterfaceType:
		list = of.Methods
	default:
		return nil
	}
	for _, field := range list.List {
		for _, name := range field.Names {
			all = append(all, name.Name)
		}
	}
	return all
}
