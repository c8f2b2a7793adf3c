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

// libraries are what others build on: their names are promised to people outside this repository.
var libraries = []string{"outbox", "outboxtest", "service", "sinks", "sinks/sinktest", "monitoring"}

// given are methods by which the standard library, or a library of ours, finds out what a type can.
var given = strings.Fields(`Error Unwrap Is As String GoString Format LogValue MarshalJSON UnmarshalJSON MarshalText UnmarshalText
	MarshalYAML UnmarshalYAML Scan Value Read Write Close Seek ServeHTTP Handle Enabled WithAttrs WithGroup Describe Collect Len Less Swap
	Temporary Timeout SetDeadline Dial RoundTrip TextValue ScanText`)

// exportedPackage is what a package shows, and what of it somebody uses.
type exportedPackage struct {
	dir     string
	decls   map[string]ast.Node // exported, at the top level
	methods map[string][]*ast.FuncDecl
	consts  map[string][]string // constants by the name of their type
	used    map[string]bool
}

// TestExportedNamesAreUsed: what only its own package uses does not show. A name counts as used if another package names it
// (its tests too), if a page of the documentation does, or if it is part of another name that is used.
func TestExportedNamesAreUsed(t *testing.T) {
	t.Parallel()
	all := map[string]*exportedPackage{}
	selected := map[string]map[string]bool{} // names behind a dot or in front of a colon, by the directory that uses them
	inInterfaces := map[string]bool{}
	for _, s := range allSources(t) {
		if !s.test && s.file.Name.Name != "main" && !slices.Contains(libraries, s.dir) && !strings.HasPrefix(s.dir, "tools") {
			if all[s.dir] == nil {
				all[s.dir] = &exportedPackage{
					dir: s.dir, decls: map[string]ast.Node{}, methods: map[string][]*ast.FuncDecl{}, consts: map[string][]string{}, used: map[string]bool{},
				}
			}
			all[s.dir].read(s.file)
		}
		if selected[s.dir] == nil {
			selected[s.dir] = map[string]bool{}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				selected[s.dir][n.Sel.Name] = true
			case *ast.InterfaceType:
				for _, m := range n.Methods.List {
					for _, name := range m.Names {
						inInterfaces[name.Name] = true
					}
				}
			}
			return true
		})
	}
	for _, s := range allSources(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if id, ok := sel.X.(*ast.Ident); ok {
					dir := strings.TrimPrefix(s.packages[id.Name], module+"/")
					if p := all[dir]; p != nil && dir != s.dir {
						p.use(sel.Sel.Name)
					}
				}
			}
			return true
		})
	}
	readDocumented(t, all)

	var found violations
	for dir, p := range all {
		for name := range p.decls {
			if !p.used[name] {
				found.add(dir+"."+name, "%s.%s is exported, but only its own package uses it", dir, name)
				continue
			}
			for _, m := range p.methods[name] {
				if inInterfaces[m.Name.Name] || slices.Contains(given, m.Name.Name) || selectedElsewhere(selected, dir, m.Name.Name) {
					continue
				}
				found.add(dir+"."+funcName(m), "%s.%s is exported, but only its own package uses it", dir, funcName(m))
			}
		}
	}
	found.compare(t, "exported")
}

func selectedElsewhere(selected map[string]map[string]bool, dir, name string) bool {
	for other, names := range selected {
		if other != dir && names[name] {
			return true
		}
	}
	return false
}

// read collects what a file exports.
func (p *exportedPackage) read(file *ast.File) {
	eachTopLevel(file, func(name *ast.Ident, decl ast.Node) {
		if !name.IsExported() {
			return
		}
		p.decls[name.Name] = decl
		if v, ok := decl.(*ast.ValueSpec); ok {
			if of, ok := v.Type.(*ast.Ident); ok {
				p.consts[of.Name] = append(p.consts[of.Name], name.Name)
			}
		}
	})
	for _, decl := range file.Decls {
		d, ok := decl.(*ast.GenDecl)
		if ok {
			p.readGroup(d)
		}
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv != nil && f.Name.IsExported() {
			p.methods[receiver(f)] = append(p.methods[receiver(f)], f)
		}
	}
}

// readGroup gives the constants behind an iota the type of the first.
func (p *exportedPackage) readGroup(d *ast.GenDecl) {
	typeOf := ""
	for _, spec := range d.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok {
			return
		}
		if of, ok := v.Type.(*ast.Ident); ok {
			typeOf = of.Name
			continue
		}
		for _, value := range v.Values { // Smart = Mode(1)
			typeOf = ""
			if call, ok := value.(*ast.CallExpr); ok {
				if of, ok := call.Fun.(*ast.Ident); ok {
					typeOf = of.Name
				}
			}
		}
		for _, name := range v.Names {
			if typeOf != "" && name.IsExported() {
				p.consts[typeOf] = append(p.consts[typeOf], name.Name)
			}
		}
	}
}

// use marks a name, and all of this package that whoever uses it comes to see: the types of its parameters, results and
// exported fields, and the values of an enumeration.
func (p *exportedPackage) use(name string) {
	decl := p.decls[name]
	if decl == nil || p.used[name] {
		return
	}
	p.used[name] = true
	switch d := decl.(type) {
	case *ast.FuncDecl:
		p.useAll(d.Type)
	case *ast.ValueSpec:
		if d.Type != nil {
			p.useAll(d.Type)
		}
		for _, value := range d.Values {
			if literal, ok := value.(*ast.CompositeLit); ok && literal.Type != nil {
				p.useAll(literal.Type)
			}
		}
	case *ast.TypeSpec:
		p.useAll(d.Type)
		for _, m := range p.methods[name] {
			p.useAll(m.Type)
		}
		for _, value := range p.consts[name] {
			p.use(value)
		}
	}
}

func (p *exportedPackage) useAll(in ast.Node) {
	ast.Inspect(in, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			// A field that is not exported shows nothing; an embedded one has no names.
			return len(n.Names) == 0 || slices.ContainsFunc(n.Names, (*ast.Ident).IsExported) || !isStructField(in, n)
		case *ast.Ident:
			p.use(n.Name)
		}
		return true
	})
}

// isStructField tells a field of the struct from a parameter.
func isStructField(in ast.Node, field *ast.Field) bool {
	s, ok := in.(*ast.StructType)
	return ok && slices.Contains(s.Fields.List, field)
}

// readDocumented marks what pages name: connector.Run.
func readDocumented(t *testing.T, all map[string]*exportedPackage) {
	t.Helper()
	name := regexp.MustCompile(`\b([a-z]+)\.([A-Z]\w*)`)
	byName := map[string]*exportedPackage{}
	for dir, p := range all {
		byName[path.Base(dir)] = p
	}
	for _, p := range allPaths(t) {
		if path.Ext(p) != ".md" || path.Dir(p) == "docs/design" || p == "docs/design.md" || p == "CHANGELOG.md" {
			continue // what the design names is inside
		}
		text, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			if of := byName[m[1]]; of != nil {
				of.use(m[2])
			}
		}
	}
}
