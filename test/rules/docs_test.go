package rules

import (
	"go/ast"
	"go/token"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// mostColumns is how long a line of prose may be.
const mostColumns = 120

// line is one of a Markdown file.
type line struct {
	text  string
	code  bool // within a fenced block
	table bool
}

// markdown reads a page.
func markdown(t *testing.T, p string) []line {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, p))
	if err != nil {
		t.Fatal(err)
	}
	return splitMarkdown(string(text))
}

func splitMarkdown(text string) []line {
	var all []line
	fence := ""
	for s := range strings.Lines(text) {
		s = strings.TrimSuffix(s, "\n")
		trimmed := strings.TrimSpace(s)
		l := line{text: s, code: fence != "", table: strings.HasPrefix(trimmed, "|")}
		switch {
		case fence == "" && (strings.HasPrefix(trimmed, "```") || strings.HasPrefix(trimmed, "~~~")):
			fence, l.code = trimmed[:3], true
		case fence != "" && strings.HasPrefix(trimmed, fence):
			fence = ""
		}
		all = append(all, l)
	}
	return all
}

// A link and what it leads to, without the title.
var link = regexp.MustCompile(`\]\(([^)\s]+)[^)]*\)`)

func TestProseLines(t *testing.T) {
	t.Parallel()
	var found violations
	for _, p := range allPaths(t) {
		if path.Ext(p) != ".md" {
			continue
		}
		long := 0
		for _, l := range markdown(t, p) {
			if !l.code && !l.table && utf8.RuneCountInString(link.ReplaceAllString(l.text, "]")) > mostColumns {
				long++
			}
		}
		if long > 0 {
			found.add(p, "%s has %d lines of prose with more than %d characters: end a line where a sentence or clause ends", p, long, mostColumns)
		}
	}
	found.compare(t, "prose")
}

// TestReadmeIsShort keeps the README one screen that people read to its end; what is longer has a page in docs.
func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	const most = 90
	if n := len(markdown(t, "README.md")); n > most {
		t.Errorf("README.md has %d lines, and may have %d", n, most)
	}
}

// TestIndexHasEachPage: whoever looks for a page finds it in docs/README.md.
func TestIndexHasEachPage(t *testing.T) {
	t.Parallel()
	index := read(t, "docs/README.md")
	for _, p := range allPaths(t) {
		name, inDocs := strings.CutPrefix(p, "docs/")
		if inDocs && path.Ext(p) == ".md" && name != "README.md" && !strings.Contains(index, "("+name+")") {
			t.Errorf("docs/README.md does not lead to %s", p)
		}
	}
}

// fileName matches a file as text names it, with an anchor: one with an ending that our own files have. What stands before it
// must be no part of a longer word or of a pattern.
var fileName = regexp.MustCompile(`(?:^|[\s"'(\x60\[])((?:\.{0,2}/)?(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-]+\.(?:md|go|sql|patch))\b(#[A-Za-z0-9-]+)?`)

// docsPage matches a page of ours that a text in code names: people are shown it.
var docsPage = regexp.MustCompile(`\b(docs/[A-Za-z0-9_/-]+\.md|README\.md|CONTRIBUTING\.md)(#[A-Za-z0-9-]+)?`)

// elsewhere matches what only some people have, and what a reader of the repository cannot look up.
var elsewhere = regexp.MustCompile(`\bshared/(?:reference|model|hooks|[A-Z])|\b(?:DESIGN|STYLE)\.md|\b[Ii]ssue #?\d+\b`)

var address = regexp.MustCompile(`\b[a-z]+://\S+`)

// ourPages is where people find the pages of docs on the web: alerts and dashboards lead there.
const ourPages = "https://github.com/pyairtable-compose/outbox-cdc/blob/main/"

// TestReferencesLeadSomewhere looks at links of Markdown, with their anchors, and at files that comments, messages and pages
// name.
func TestReferencesLeadSomewhere(t *testing.T) {
	t.Parallel()
	tree := readTree(t)
	var found violations
	for _, s := range allSources(t) {
		if s.dir == "test/rules" {
			continue // it names what it looks for
		}
		check := func(pos token.Pos, text string, pattern *regexp.Regexp) {
			for _, what := range tree.missing(s.path, text, pattern) {
				found.add(s.path+": "+what, "%s:%d: %s is not in the repository", s.path, s.line(pos), what)
			}
		}
		for _, group := range s.file.Comments {
			for _, c := range group.List {
				check(c.Pos(), c.Text, fileName)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if text, ok := n.(*ast.BasicLit); ok && text.Kind == token.STRING && !s.test {
				check(text.Pos(), text.Value, docsPage)
			}
			return true
		})
	}
	for _, p := range tree.all {
		ext := path.Ext(p)
		if strings.Contains(p, "testdata/") || ext != ".md" && ext != ".sql" && ext != ".yml" && ext != ".json" && p != "Makefile" && path.Dir(p) != "scripts" {
			continue
		}
		for number, l := range markdown(t, p) {
			var missing []string
			if ext == ".md" && !l.code {
				missing = tree.brokenLinks(p, l.text)
			}
			pattern := fileName
			if l.code {
				pattern = docsPage // an example has files of its own
			}
			missing = append(missing, tree.missing(p, l.text, pattern)...)
			for _, what := range missing {
				found.add(p+": "+what, "%s:%d: %s is not in the repository", p, number+1, what)
			}
		}
	}
	found.compare(t, "reference")
}

// tree is what references can lead to.
type tree struct {
	all     []string
	exists  map[string]bool // files and directories, and what files are called without their directory
	anchors map[string][]string
}

func readTree(t *testing.T) tree {
	t.Helper()
	r := tree{all: allPaths(t), exists: map[string]bool{}, anchors: map[string][]string{}}
	for _, p := range r.all {
		r.exists[p], r.exists[path.Base(p)] = true, true
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			r.exists[d] = true
		}
		if path.Ext(p) == ".md" {
			r.anchors[p] = anchorsOf(markdown(t, p))
		}
	}
	return r
}

func (r tree) has(p, anchor string) bool {
	return r.exists[p] && (anchor == "" || path.Ext(p) != ".md" || slices.Contains(r.anchors[p], strings.ToLower(anchor)))
}

// missing finds what a text of a file refers to in vain. Files are named from the root, from where the file is, or by the
// end of their path.
func (r tree) missing(from, text string, pattern *regexp.Regexp) (all []string) {
	// Most lines name nothing, and the patterns are slow.
	if containsAny(text, "shared/", "DESIGN", "STYLE", "ssue ") {
		all = elsewhere.FindAllString(text, -1)
	}
	if !containsAny(text, ".md", ".go", ".sql", ".patch") {
		return all
	}
	text = strings.ReplaceAll(text, ourPages, "")
	for _, m := range pattern.FindAllStringSubmatch(address.ReplaceAllString(text, ""), -1) {
		name, anchor := m[len(m)-2], strings.TrimPrefix(m[len(m)-1], "#")
		if r.has(path.Clean(name), anchor) || r.has(path.Join(path.Dir(from), name), anchor) {
			continue
		}
		if anchor == "" && slices.ContainsFunc(r.all, func(p string) bool { return strings.HasSuffix(p, "/"+name) }) {
			continue
		}
		all = append(all, name+m[len(m)-1])
	}
	return all
}

func containsAny(text string, parts ...string) bool {
	return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(text, part) })
}

// brokenLinks finds the relative links in a line of a page that lead nowhere.
func (r tree) brokenLinks(page, text string) (broken []string) {
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		u, err := url.Parse(m[1])
		if err != nil || u.Scheme != "" {
			continue
		}
		target := page
		if u.Path != "" {
			target = path.Join(path.Dir(page), u.Path)
		}
		if !r.has(target, u.Fragment) {
			broken = append(broken, m[1])
		}
	}
	return broken
}

// anchorsOf makes those of a page's headings as GitHub does, and finds those that are written as HTML.
func anchorsOf(page []line) []string {
	var all []string
	times := map[string]int{}
	for _, l := range page {
		for _, m := range htmlAnchor.FindAllStringSubmatch(l.text, -1) {
			all = append(all, strings.ToLower(m[1]))
		}
		if l.code || !heading.MatchString(l.text) {
			continue
		}
		a := slug(strings.TrimLeft(l.text, "# "))
		if n := times[a]; n > 0 {
			all = append(all, a+"-"+string(rune('0'+n)))
		} else {
			all = append(all, a)
		}
		times[a]++
	}
	return all
}

var (
	heading    = regexp.MustCompile(`^#{1,6} `)
	htmlAnchor = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)
)

func slug(heading string) string {
	heading = link.ReplaceAllString(heading, "]")
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}

func TestSlug(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Where things are":        "where-things-are",
		"`dlq show`: what is it":  "dlq-show-what-is-it",
		"A [link](x.md) and_more": "a-link-and_more",
	} {
		if got := slug(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	page := splitMarkdown("# One\n```\n# no heading\n```\n## Two & three\n## One\n<a id=\"four\"></a>\n")
	if got, want := anchorsOf(page), []string{"one", "two--three", "one-1", "four"}; !slices.Equal(got, want) {
		t.Errorf("anchors %q, want %q", got, want)
	}
}

// Where the pages of docs are on the web is where they are in the repository: alerts and dashboards name them there.
func TestMissingReferences(t *testing.T) {
	t.Parallel()
	tree := tree{
		all: []string{"docs/a.md", "b.go"}, exists: map[string]bool{"docs/a.md": true, "a.md": true, "b.go": true},
		anchors: map[string][]string{"docs/a.md": {"one"}},
	}
	for text, want := range map[string][]string{
		`see docs/a.md#one and docs/a.md`:                 nil,
		`see docs/a.md#two`:                               {"docs/a.md#two"},
		`"runbook_url": "` + ourPages + `docs/a.md#one"`:  nil,
		`"runbook_url": "` + ourPages + `docs/a.md#two"`:  {"docs/a.md#two"},
		`runbook_url: ` + ourPages + `docs/c.md`:          {"docs/c.md"},
		`https://example.com/docs/a.md#two and mailto:me`: nil,
	} {
		if got := tree.missing("docs/a.md", text, fileName); !slices.Equal(got, want) {
			t.Errorf("%q: %q are missing, want %q", text, got, want)
		}
	}
}
