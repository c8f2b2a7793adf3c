package rules

import (
	"go/ast"
	"strings"
	"testing"
)

const (
	// maxFields is how many fields a type may have, those of the types that it embeds not counted.
	maxFields = 25
	// maxEmbedding is how deep types may be embedded in each other: a type that embeds one that embeds none has depth 1.
	maxEmbedding = 2
)

// structOf is a struct type of the product, by package and name.
type structOf struct {
	source *source
	fields *ast.FieldList
}

// structs returns the struct types of the product, by their package's directory and their name.
func structs(t *testing.T) map[string]structOf {
	t.Helper()
	all := map[string]structOf{}
	for _, s := range allSources(t) {
		if s.test || !product(s.dir) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if x, ok := spec.Type.(*ast.StructType); ok {
					all[s.dir+"."+spec.Name.Name] = structOf{s, x.Fields}
				}
			}
			return true
		})
	}
	return all
}

// TestTypesAreSmall: a type of many fields is several types that nobody has told apart. Registries of metrics and configuration are
// lists, and are excepted in allowed.txt.
func TestTypesAreSmall(t *testing.T) {
	t.Parallel()
	var found violations
	for name, s := range structs(t) {
		n := 0
		for _, f := range s.fields.List {
			n += max(1, len(f.Names))
		}
		if n > maxFields {
			found.add(name, "%s:%d: %s has %d fields, more than %d", s.source.path, s.source.line(s.fields.Pos()), name, n, maxFields)
		}
	}
	found.compare(t, "fields")
}

// TestEmbeddingIsShallow: what a type can do must be found without climbing through three others.
func TestEmbeddingIsShallow(t *testing.T) {
	t.Parallel()
	all := structs(t)
	var found violations
	var depth func(name string) int
	depth = func(name string) int {
		deepest := 0
		for _, f := range all[name].fields.List {
			if len(f.Names) > 0 {
				continue
			}
			d := 1
			if inner := embedded(all[name].source, f.Type); all[inner].fields != nil {
				d += depth(inner)
			}
			deepest = max(deepest, d)
		}
		return deepest
	}
	for name, s := range all {
		if d := depth(name); d > maxEmbedding {
			found.add(name, "%s:%d: %s embeds types %d deep, more than %d", s.source.path, s.source.line(s.fields.Pos()), name, d, maxEmbedding)
		}
	}
	found.compare(t, "embedding")
}

// embedded returns package and name of a type that is embedded in a file of s.
func embedded(s *source, x ast.Expr) string {
	if star, ok := x.(*ast.StarExpr); ok {
		x = star.X
	}
	switch x := x.(type) {
	case *ast.Ident:
		return s.dir + "." + x.Name
	case *ast.SelectorExpr:
		if p, ok := x.X.(*ast.Ident); ok {
			return strings.TrimPrefix(s.packages[p.Name], module+"/") + "." + x.Sel.Name
		}
	}
	return ""
}
