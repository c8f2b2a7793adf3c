package rules

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// maxJourney is how many lines of code the reader of docs/design.md has to read to follow one event, comments and empty lines not counted.
const maxJourney = 400

// journeyStep is a step of the journey, up to the next one or to what is beside the way.
var journeyStep = regexp.MustCompile(`(?ms)^\d+\. \*\*.*?(?:^$|\z)`)

// TestJourneyIsShort keeps what docs/design.md promises of the way of one event.
func TestJourneyIsShort(t *testing.T) {
	t.Parallel()
	_, journey, found := strings.Cut(read(t, "docs/design.md"), "\n## The journey of one event\n")
	journey, _, _ = strings.Cut(journey, "\n## ")
	if !found {
		t.Fatal("docs/design.md has no such section")
	}
	steps := strings.Join(strings.Fields(strings.Join(journeyStep.FindAllString(journey, -1), " ")), " ")
	lines, functions := 0, 0
	for _, m := range namesInFile.FindAllStringSubmatch(steps, -1) {
		for _, name := range codeSpan.FindAllStringSubmatch(m[1], -1) {
			lines += codeLines(t, name[1], m[2])
			functions++
		}
	}
	if functions < 20 {
		t.Errorf("only %d functions with their files were found: are they still looked for as they are written?", functions)
	}
	t.Logf("%d lines in %d functions", lines, functions)
	if lines > maxJourney {
		t.Errorf("the journey of one event leads through %d lines of code, more than %d", lines, maxJourney)
	}
}

// codeLines returns how many lines of code a function has, which is named as package.function or Type.method.
func codeLines(t *testing.T, name, file string) int {
	t.Helper()
	_, function, _ := strings.Cut(name, ".")
	all := allSources(t)
	i := slices.IndexFunc(all, func(s *source) bool { return s.path == file })
	if i < 0 {
		t.Fatalf("there is no %s", file)
	}
	s := all[i]
	for _, decl := range s.file.Decls {
		d, ok := decl.(*ast.FuncDecl)
		if !ok || funcName(d) != name && (d.Recv != nil || d.Name.Name != function) {
			continue
		}
		n := 0
		for _, l := range strings.Split(string(s.text), "\n")[s.line(d.Pos())-1 : s.line(d.End())] {
			if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "//") {
				n++
			}
		}
		return n
	}
	return 0 // a method of an interface; TestDesignNamesWhatExists looks whether there is one
}
