// Command demopicture draws what a program has printed on a terminal, as an SVG. It reads it from standard input. The first argument is
// the command that printed it. Lines between those that match the second and the third are left out, which the picture says by "…".
package main

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// The size of a character, and of the margin, in pixels.
const (
	wide, high, margin = 7.8, 17, 14
	columns            = 100
)

// colours are the parameters of ANSI's SGR that the demo uses, as styles of a text.
var colours = map[string]string{
	"1": "font-weight:bold;fill:#ffffff", "2": "fill:#8b949e", "1;31": "font-weight:bold;fill:#ff7b72", "1;32": "font-weight:bold;fill:#7ee787",
	"1;33": "font-weight:bold;fill:#e3b341", "36": "fill:#76d9e6",
}

func main() {
	if err := run(os.Stdin, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: demopicture COMMAND FIRST LAST < what it printed")
	}
	first, err := regexp.Compile(args[1])
	if err != nil {
		return err
	}
	last, err := regexp.Compile(args[2])
	if err != nil {
		return err
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	lines, err := shorten(printed(text), first, last)
	if err != nil {
		return err
	}
	lines = append([]string{"\x1b[1m$ " + args[0] + "\x1b[0m"}, lines...)
	_, err = out.Write(draw(lines))
	return err
}

// printed returns the lines, without what script(1) adds.
func printed(text []byte) []string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(string(text), "\r", ""), "\n"), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "Script started on ") || strings.HasPrefix(l, "Script done on ")
	})
	for len(lines) > 0 && strings.TrimSpace(lines[len(lines)-1]) == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// shorten replaces what is between the line that matches first and the one that matches last.
func shorten(lines []string, first, last *regexp.Regexp) ([]string, error) {
	from := slices.IndexFunc(lines, first.MatchString)
	to := slices.IndexFunc(lines, last.MatchString)
	if from < 0 || to <= from {
		return nil, fmt.Errorf("there is no line %q with a later line %q in what was printed", first, last)
	}
	return slices.Concat(lines[:from+1], []string{"\x1b[2m…\x1b[0m"}, lines[to:]), nil
}

func draw(lines []string) []byte {
	var b bytes.Buffer
	width, height := columns*wide+2*margin, len(lines)*high+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" viewBox="0 0 %.0f %d">`+"\n", width, height, width, height)
	fmt.Fprint(&b, "<!-- made by: make demo-picture -->\n<style>text{white-space:pre;font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d6dde4}</style>\n")
	fmt.Fprintf(&b, `<rect width="%.0f" height="%d" rx="8" fill="#0d1117"/>`+"\n", width, height)
	style := ""
	for i, l := range lines {
		x := 0
		fmt.Fprintf(&b, `<text y="%d">`, margin+i*high+high-4)
		var spans []span
		spans, style = split(l, style)
		for _, s := range spans {
			n := len([]rune(s.text))
			// Each text says how long it is, because fonts differ.
			fmt.Fprintf(&b, `<tspan x="%.1f" textLength="%.1f" style="%s" xml:space="preserve">%s</tspan>`, margin+float64(x)*wide, float64(n)*wide, s.style, html.EscapeString(s.text))
			x += n
		}
		fmt.Fprint(&b, "</text>\n")
	}
	fmt.Fprint(&b, "</svg>\n")
	return b.Bytes()
}

type span struct{ style, text string }

var sgr = regexp.MustCompile("\x1b\\[([0-9;]*)m")

// split cuts a line where its style changes. It begins with the style that the line before has ended with, and returns its last.
func split(line, style string) (all []span, last string) {
	for line != "" {
		at := sgr.FindStringSubmatchIndex(line)
		if at == nil {
			at = []int{len(line), len(line), len(line), len(line)}
		}
		if at[0] > 0 {
			all = append(all, span{style, line[:at[0]]})
		}
		style, line = colours[line[at[2]:at[3]]], line[at[1]:]
	}
	return all, style
}
