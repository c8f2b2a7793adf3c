package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the repository's, seen from this package.
const root = "../.."

// block is a fenced block of a page, or an indented one, which has no language.
type block struct {
	page, lang, text string
	line             int
	mark             string // the comment just before it
	fenced           bool
}

func (b block) first() string { first, _, _ := strings.Cut(b.text, "\n"); return first }

// shell says whether a block has commands.
func (b block) shell() bool {
	return slices.Contains([]string{"sh", "bash", "shell", "console"}, b.lang)
}

var (
	fence   = regexp.MustCompile("^( *)(```|~~~)(.*)$")
	comment = regexp.MustCompile(`^ *<!-- ((?:not run|run by): .*) -->$`)
	// typed matches what looks like commands: it begins with a program, not with the name of one in a sentence or on a screen.
	typed = regexp.MustCompile(`^(?:\$ |(?:[A-Z_]+=\S+ )*(?:bin/)?outbox-cdc [a-z]+(?: |$)|(?:psql|curl|docker|helm|kubectl|make|git|promtool|systemctl|export|jq) )`)
)

// blocksOf finds the blocks of a page.
func blocksOf(page, text string) (all []block) {
	var open *block
	var mark, indent, last string
	for i, l := range strings.Split(text, "\n") {
		m := fence.FindStringSubmatch(l)
		switch {
		case open != nil && open.fenced && m != nil:
			all, open, mark = append(all, *open), nil, ""
		case open != nil && open.fenced:
			open.text += strings.TrimPrefix(l, indent) + "\n"
		case m != nil:
			open, indent = &block{page: page, lang: strings.TrimSpace(m[3]), line: i + 1, mark: mark, fenced: true}, m[1]
		case strings.HasPrefix(l, "    ") && open != nil:
			open.text += strings.TrimSpace(l) + "\n"
		case strings.HasPrefix(l, "    ") && strings.TrimSpace(last) == "":
			open = &block{page: page, line: i + 1, text: strings.TrimSpace(l) + "\n"}
		default:
			if open != nil {
				all, open = append(all, *open), nil
			}
			if c := comment.FindStringSubmatch(l); c != nil {
				mark = c[1]
			} else if strings.TrimSpace(l) != "" {
				mark = ""
			}
		}
		last = l
	}
	if open != nil {
		all = append(all, *open)
	}
	return all
}

// pages are the Markdown files of the repository, from its root.
func pages(t *testing.T) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

func allBlocks(t *testing.T) (all []block) {
	t.Helper()
	for _, page := range pages(t) {
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, blocksOf(page, string(text))...)
	}
	return all
}

var (
	notRun = regexp.MustCompile(`^not run: \S.{9,}$`)
	runBy  = regexp.MustCompile(`^run by: (Test[A-Za-z0-9]+) in ([a-z0-9/-]+)(?:$|, )`)
)

// TestEachBlockIsRunOrMarked: no block with commands is only there to be read, unless it says why.
func TestEachBlockIsRunOrMarked(t *testing.T) {
	t.Parallel()
	shells := 0
	all := allBlocks(t)
	var run []block
	for i, blocks := range assign(all) {
		run = append(run, blocks...)
		if len(blocks) == 0 {
			t.Errorf("%s has no block that begins with %q: a scene of test/docs/scenes_test.go looks for it", scenes[i].page, scenes[i].first)
		}
	}
	for _, b := range all {
		switch {
		case b.fenced && b.lang == "":
			t.Errorf("%s:%d: the block has no language: sh for commands, text for what is none", b.page, b.line)
			continue
		case !b.shell():
			if typed.MatchString(b.first()) && b.lang != "text" {
				t.Errorf("%s:%d: these look like commands: write them as a block ```sh", b.page, b.line)
			}
			continue
		}
		shells++
		by := runBy.FindStringSubmatch(b.mark)
		switch {
		case slices.Contains(run, b), notRun.MatchString(b.mark):
		case by == nil:
			t.Errorf("%s:%d: nothing runs this block: give it a scene in test/docs/scenes_test.go, or say why not just before it: <!-- not run: … -->", b.page, b.line)
		case !hasTest(t, by[2], by[1]):
			t.Errorf("%s:%d: there is no %s in %s", b.page, b.line, by[1], by[2])
		}
	}
	if shells < 30 {
		t.Errorf("only %d blocks with commands were found: are they still looked for as they are written?", shells)
	}
}

func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), "\nfunc "+name+"(t *testing.T) {")
	})
}

func TestBlocksOf(t *testing.T) {
	t.Parallel()
	page := "text\n<!-- not run: a reason -->\n\n```sh\na <id>\n\nb\n```\n\n    outbox-cdc status\n\n- item\n\n  ```console\n  $ c\n  out\n  ```\n\n<!-- not run: of another -->\ntext\n\n```\nd\n```\n"
	got := blocksOf("p.md", page)
	want := []block{
		{page: "p.md", lang: "sh", text: "a <id>\n\nb\n", line: 4, mark: "not run: a reason", fenced: true},
		{page: "p.md", text: "outbox-cdc status\n", line: 10},
		{page: "p.md", lang: "console", text: "$ c\nout\n", line: 14, fenced: true},
		{page: "p.md", text: "d\n", line: 22, fenced: true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	for text, want := range map[string]bool{
		"outbox-cdc status": true, "$ ls": true, "A=b outbox-cdc run": true, "outbox-cdc shop: degraded": false, "select 1": false, "bin/outbox-cdc init --x": true,
	} {
		if typed.MatchString(text) != want {
			t.Errorf("%q looks like commands: %v, want %v", text, !want, want)
		}
	}
}
