package rules

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mostLines is how long a file may be.
const mostLines = 500

// written tells what a person writes and reads, from what is generated or given.
func written(p string) bool {
	switch path.Ext(p) {
	case ".go", ".sql", ".md", ".yml", ".sh":
		return !strings.Contains(p, "/testdata/") && p != "CHANGELOG.md"
	}
	return path.Dir(p) == "scripts"
}

func TestFilesAreShort(t *testing.T) {
	t.Parallel()
	var found violations
	for _, p := range allPaths(t) {
		if !written(p) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte("\n")); n > mostLines {
			found.add(p, "%s has %d lines, more than %d: it holds more than one thing", p, n, mostLines)
		}
	}
	found.compare(t, "length")
}

// TestNamesDifferByMoreThanCase: Sink and sink would be one word for two things.
func TestNamesDifferByMoreThanCase(t *testing.T) {
	t.Parallel()
	var found violations
	names := map[string]map[string]bool{} // by package and the name in lower case
	add := func(pkg, name string) {
		if name == "_" {
			return
		}
		key := pkg + ": " + strings.ToLower(name)
		if names[key] == nil {
			names[key] = map[string]bool{}
		}
		names[key][name] = true
	}
	for _, s := range allSources(t) {
		pkg := s.dir
		if strings.HasSuffix(s.file.Name.Name, "_test") && s.test {
			pkg += " (its outside tests)"
		}
		eachTopLevel(s.file, func(name *ast.Ident, _ ast.Node) { add(pkg, name.Name) })
	}
	eachFunc(t, func(s *source, _ string, d *ast.FuncDecl) {
		if d.Recv != nil {
			add(s.dir+", methods of "+receiver(d), d.Name.Name)
		}
	})
	for _, p := range allPaths(t) {
		add(path.Dir(p)+", files", path.Base(p))
	}
	for key, same := range names {
		if len(same) > 1 {
			pkg, _, _ := strings.Cut(key, ": ")
			all := slices.Sorted(maps.Keys(same))
			found.add(pkg+": "+strings.Join(all, ", "), "%s has names that differ by case only: %s", pkg, strings.Join(all, ", "))
		}
	}
	found.compare(t, "case")
}

// eachTopLevel calls do with the name and the declaration of all package-level names; methods are none.
func eachTopLevel(file *ast.File, do func(name *ast.Ident, decl ast.Node)) {
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name != "init" {
				do(d.Name, d)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					do(s.Name, s)
				case *ast.ValueSpec:
					for _, name := range s.Names {
						do(name, s)
					}
				}
			}
		}
	}
}

// TestNoPositionalBools: at the call "true" says nothing. Func literals may have to fit somebody else's signature.
func TestNoPositionalBools(t *testing.T) {
	t.Parallel()
	var found violations
	for _, s := range allSources(t) {
		check := func(name string, at ast.Node, f *ast.FuncType) {
			for _, field := range f.Params.List {
				if id, ok := field.Type.(*ast.Ident); ok && id.Name == "bool" {
					param := "_"
					if len(field.Names) > 0 {
						param = field.Names[0].Name
					}
					found.add(fmt.Sprintf("%s.%s(%s)", s.dir, name, param), "%s:%d: %s has the positional bool %s: two names, a type, or a struct say more",
						s.path, s.line(at.Pos()), name, param)
				}
			}
		}
		for _, decl := range s.file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				check(funcName(f), f, f.Type)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				switch x := n.Type.(type) {
				case *ast.FuncType:
					check(n.Name.Name, n, x)
				case *ast.InterfaceType:
					for _, m := range x.Methods.List {
						if f, ok := m.Type.(*ast.FuncType); ok {
							check(n.Name.Name+"."+m.Names[0].Name, m, f)
						}
					}
				}
			case *ast.AssignStmt: // a function that is declared within another one
				for i, right := range n.Rhs {
					f, ok := right.(*ast.FuncLit)
					if !ok || n.Tok != token.DEFINE || len(n.Lhs) != len(n.Rhs) {
						continue
					}
					if name, ok := n.Lhs[i].(*ast.Ident); ok {
						check(name.Name, f, f.Type)
					}
				}
			}
			return true
		})
	}
	found.compare(t, "bool")
}

// product reports whether a package is part of what is shipped, and not of what tests it.
func product(dir string) bool {
	return !strings.HasPrefix(dir, "test/") && !strings.HasPrefix(dir, "internal/") && !strings.HasPrefix(dir, "tools") &&
		!strings.HasPrefix(dir, "examples/") && dir != "outboxtest" && dir != "sinks/sinktest"
}

// eachFunc calls do with all functions and methods of the product, tests left out.
func eachFunc(t *testing.T, do func(s *source, name string, d *ast.FuncDecl)) {
	t.Helper()
	for _, s := range allSources(t) {
		if s.test || !product(s.dir) {
			continue
		}
		for _, decl := range s.file.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Body != nil {
				do(s, funcName(d), d)
			}
		}
	}
}

// TestGoroutines: allowed.txt is the list of all functions that start some. Those of a session are in the table of
// connector/doc.go as well.
func TestGoroutines(t *testing.T) {
	t.Parallel()
	var found violations
	eachFunc(t, func(s *source, name string, d *ast.FuncDecl) {
		ast.Inspect(d.Body, func(n ast.Node) bool {
			starts := false
			switch n := n.(type) {
			case *ast.GoStmt:
				starts = true
			case *ast.CallExpr:
				f, ok := n.Fun.(*ast.SelectorExpr)
				starts = ok && len(n.Args) == 1 && (f.Sel.Name == "Go" || f.Sel.Name == "TryGo")
			}
			if starts {
				found.add(s.dir+"."+name, "%s:%d: %s starts a goroutine: who waits for it, and what does it own?", s.path, s.line(n.Pos()), name)
			}
			return true
		})
	})
	found.compare(t, "goroutine")
}

// TestPanics: a panic is for a mistake of the programmer, and nobody recovers but who runs code of others.
func TestPanics(t *testing.T) {
	t.Parallel()
	var found violations
	eachFunc(t, func(s *source, name string, d *ast.FuncDecl) {
		ast.Inspect(d.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if id, ok := call.Fun.(*ast.Ident); ok && (id.Name == "panic" || id.Name == "recover") {
				found.add(s.dir+"."+name, "%s:%d: %s in %s: return an error", s.path, s.line(n.Pos()), id.Name, name)
			}
			return true
		})
	})
	found.compare(t, "panic")
}

// TestNoSleeps: a test waits for a condition, or sleeps by the clock of testing/synctest. A package whose tests use that
// has helpers that sleep and that only run within a bubble, so the rule is about packages.
func TestNoSleeps(t *testing.T) {
	t.Parallel()
	bubbles := map[string]bool{}
	for _, s := range allSources(t) {
		if s.test && s.packages["synctest"] == "testing/synctest" {
			bubbles[s.dir] = true
		}
	}
	var found violations
	for _, s := range allSources(t) {
		if !s.test || bubbles[s.dir] {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
				if id, ok := sel.X.(*ast.Ident); ok && s.packages[id.Name] == "time" {
					found.add(s.path, "%s:%d: a test waits for a condition, with a deadline", s.path, s.line(n.Pos()))
				}
			}
			return true
		})
	}
	found.compare(t, "sleep")
}

func TestNoInit(t *testing.T) {
	t.Parallel()
	var found violations
	for _, s := range allSources(t) {
		for _, decl := range s.file.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Recv == nil && d.Name.Name == "init" {
				found.add(s.path, "%s:%d: an init function runs where nobody calls it", s.path, s.line(d.Pos()))
			}
		}
	}
	found.compare(t, "init")
}

// empty matches names that say nothing of what a thing is or does.
var empty = regexp.MustCompile(`^(?i:get)[A-Z]|^Base[A-Z]|(?i:manager|helper|engine)$|Impl$|^(?i:utils?|helpers|common|misc)$`)

// TestNamesSaySomething leaves out names that are given: those of the platform, in outbox, service and what tests them, and
// methods in tests, which often have to fit somebody else's interface.
func TestNamesSaySomething(t *testing.T) {
	t.Parallel()
	var found violations
	for _, s := range allSources(t) {
		check := func(name string, at ast.Node) {
			if empty.MatchString(name) {
				found.add(s.dir+"."+name, "%s:%d: the name %s says nothing", s.path, s.line(at.Pos()), name)
			}
		}
		check(path.Base(s.dir), s.file)
		check(strings.TrimSuffix(strings.TrimSuffix(path.Base(s.path), ".go"), "_test"), s.file)
		if s.dir == "outbox" || s.dir == "service" || s.dir == "outboxtest" {
			continue
		}
		eachTopLevel(s.file, func(name *ast.Ident, _ ast.Node) { check(name.Name, name) })
		for _, decl := range s.file.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Recv != nil && !s.test {
				check(d.Name.Name, d)
			}
		}
	}
	found.compare(t, "name")
}

// TestErrorsNameTheStep: that it failed is said by the fact that there is an error.
func TestErrorsNameTheStep(t *testing.T) {
	t.Parallel()
	var found violations
	for _, s := range allSources(t) {
		if s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			text, isText := call.Args[0].(*ast.BasicLit)
			if !ok || !isText || f.Sel.Name != "Errorf" && f.Sel.Name != "New" {
				return true
			}
			lower := strings.ToLower(text.Value)
			for _, begin := range []string{"failed to", "failure to", "unable to", "could not"} {
				if strings.HasPrefix(lower[1:], begin) {
					found.add(s.dir+" "+text.Value, "%s:%d: %s: an error names the step that failed, and no more", s.path, s.line(n.Pos()), text.Value)
				}
			}
			return true
		})
	}
	found.compare(t, "error")
}
