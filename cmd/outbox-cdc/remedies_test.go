package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// mention is a text that may contain a command line of outbox-cdc.
type mention struct{ where, text string }

// TestRemediesExist runs --help of every command that our messages and documents name, and looks for the flags that they
// name.
func TestRemediesExist(t *testing.T) {
	t.Parallel()
	checked := map[string]bool{}
	for _, m := range mentions(t, filepath.Join("..", "..")) {
		for _, c := range commandsIn(m.text) {
			key := strings.Join(append(slices.Clone(c.words), c.flags...), " ")
			if checked[key] {
				continue
			}
			checked[key] = true
			help := command(t, nil, append(slices.Clone(c.words), "--help")...)
			// For a command that does not exist it is the help of what stands before.
			if usage := "outbox-cdc " + strings.Join(c.words, " ") + " "; help.code != 0 || !strings.Contains(help.stdout, usage) {
				t.Errorf("%s: there is no outbox-cdc %s", m.where, strings.Join(c.words, " "))
				continue
			}
			for _, flag := range c.flags {
				if !regexp.MustCompile(regexp.QuoteMeta(flag) + `\b`).MatchString(help.stdout) {
					t.Errorf("%s: outbox-cdc %s has no flag %s", m.where, strings.Join(c.words, " "), flag)
				}
			}
		}
	}
	for _, want := range []string{"init --backlog", "destroy", "resync --backlog --parked", "events list --status --sink"} {
		if !checked[want] {
			t.Errorf("no mention of %q was found: are they still looked for where they stand?", want)
		}
	}
}

func TestCommandsIn(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`run "outbox-cdc resync", then "outbox-cdc init --backlog none"`: "resync|init --backlog",
		"    outbox-cdc shop: degraded":                                  "",
		"outbox-cdc reads rows":                                          "",
		"bin/outbox-cdc dlq list --sink partner  # --type":               "dlq list --sink",
		"`destroy` and `init --backlog none`":                            "destroy|init --backlog",
		"outbox-cdc init makes the ledger; outbox-cdc run --init":        "init|run --init",
		"outbox-cdc init --config a --print-sql | psql --no-psqlrc":      "init --config --print-sql",
		"run outbox-cdc heal (--now)":                                    "heal",
		"`dlq kill --all`, and `outbox-cdc dlq discard --reason=x`.":     "dlq kill --all|dlq discard --reason",
	} {
		var got []string
		for _, c := range commandsIn(text) {
			got = append(got, strings.Join(append(c.words, c.flags...), " "))
		}
		if strings.Join(got, "|") != want {
			t.Errorf("%s: %q, want %q", text, strings.Join(got, "|"), want)
		}
	}
}

type named struct{ words, flags []string }

var (
	// Either outbox-cdc with the words after it that can belong to a command line, or a text that is quoted as code.
	commandLine = regexp.MustCompile("outbox-cdc((?: +[^ `\"|;#()\n]+)+)|`((?:[a-z]+)(?: +[^ `\"|;#()\n]+)*)`")
	// What stands before outbox-cdc if the text is a command to type.
	asked       = regexp.MustCompile("(?i)(?:[`\"]|\\brun |(?:^|\n)(?: {4,}|\\$ )(?:bin/)?)$")
	flagName    = regexp.MustCompile(`^--[a-z][a-z-]*`)
	commandName = regexp.MustCompile(`^[a-z]+$`)
)

// commandsIn finds the command lines in a text.
func commandsIn(text string) (found []named) {
	for _, at := range commandLine.FindAllStringSubmatchIndex(text, -1) {
		ours, line := at[2] >= 0, text[max(at[2], at[4]):max(at[3], at[5])]
		meant := ours && asked.MatchString(text[:at[0]])
		tokens := strings.Fields(line)
		title := len(tokens) > 0 && strings.HasSuffix(tokens[0], ":") // as the first line of a screen: "outbox-cdc orders: ok"
		for i, token := range tokens {
			tokens[i] = strings.TrimRight(token, ".,:'")
		}
		var c named
		tree := newRootCommand(nil)
		for len(tokens) > 0 && commandName.MatchString(tokens[0]) {
			next := subcommand(tree, tokens[0])
			if next == nil && (tree.HasParent() || !meant || title) {
				break // an argument, other code, or a sentence about us
			}
			c.words, tokens = append(c.words, tokens[0]), tokens[1:]
			if next == nil {
				break
			}
			tree = next
		}
		if c.words == nil {
			continue
		}
		for _, token := range tokens {
			if flag := flagName.FindString(token); flag != "" {
				c.flags = append(c.flags, flag)
			}
		}
		found = append(found, c)
	}
	return found
}

func subcommand(of *cobra.Command, name string) *cobra.Command {
	for _, c := range of.Commands() {
		if c.Name() == name {
			return c
		}
	}
	return nil
}

// mentions returns the string literals of all code except tests, and the lines of documents, examples and SQL.
func mentions(t *testing.T, root string) (all []mention) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || d.Name() == "test"):
			return filepath.SkipDir
		case strings.HasSuffix(path, "_test.go"):
		case strings.HasSuffix(path, ".go"):
			all = append(all, literals(t, path)...)
		case slices.Contains([]string{".md", ".yml", ".yaml", ".sql"}, filepath.Ext(path)):
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all = append(all, mention{path, indented(string(data))})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// indented indents the blocks of a page that are fenced, so that their lines are taken for what a person types.
func indented(page string) string {
	var b strings.Builder
	fenced := false
	for l := range strings.Lines(page) {
		if strings.HasPrefix(strings.TrimSpace(l), "```") {
			fenced = !fenced
		} else if fenced {
			b.WriteString("    ")
		}
		b.WriteString(l)
	}
	return b.String()
}

// literals returns the strings of a file. Strings that are added to each other become one, with … in place of what is not
// a literal.
func literals(t *testing.T, path string) (all []mention) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		if text, isText := literal(e); isText {
			all = append(all, mention{files.Position(e.Pos()).String(), text})
			return false
		}
		return true
	})
	return all
}

func literal(e ast.Expr) (text string, isText bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.ParenExpr:
		return literal(e.X)
	case *ast.BinaryExpr:
		left, isLeft := literal(e.X)
		right, isRight := literal(e.Y)
		if e.Op != token.ADD || !isLeft && !isRight {
			return "", false
		}
		if !isLeft {
			left = "…"
		}
		if !isRight {
			right = "…"
		}
		return left + right, true
	}
	return "", false
}
