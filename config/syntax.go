package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxSyntaxWork bounds the search for the line of a syntax error, in bytes that are parsed. A larger file has the line of the YAML
// package.
const maxSyntaxWork = 64 << 20

// yamlLine is what begins an error of the YAML package.
var yamlLine = regexp.MustCompile(`^yaml: (?:line \d+: )?`)

// syntaxMistake returns the line of an error of the YAML package, 0 if it is not known, and what is wrong there. It repeats nothing of
// the file, which may hold passwords.
func syntaxMistake(data []byte, err error) (line int, text string) {
	text = strings.TrimPrefix(err.Error(), yamlLine.FindString(err.Error()))
	if strings.HasPrefix(text, "unknown anchor") { // whose name may be the password that somebody forgot to quote
		text = "unknown anchor; a value that begins with * needs quotes"
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	line = wrongLine(lines)
	if line == 0 {
		if _, scanErr := fmt.Sscanf(err.Error(), "yaml: line %d:", &line); scanErr != nil {
			line = 0
		}
		return line, text
	}
	wrong := string(lines[line-1])
	switch before := contentBefore(lines, line); {
	case strings.Contains(indentation(wrong), "\t"):
		text = "a tab indents this line; write spaces instead"
	case before > 0 && !endsKey.Match(lines[before-1]) && (text == unexpectedColon ||
		text == noFit && len(indentation(wrong)) > len(indentation(string(lines[before-1])))):
		line, text = before, syntaxTexts[noColon]
	case syntaxTexts[text] != "":
		text = syntaxTexts[text]
	}
	return line, text
}

const (
	unexpectedColon = "mapping values are not allowed in this context"
	noColon         = "could not find expected ':'"
	noFit           = "did not find expected key"
)

// syntaxTexts says in words for a person what the YAML package says of its own grammar.
var syntaxTexts = map[string]string{
	noColon:                                       "a colon, or the space behind it, is missing",
	unexpectedColon:                               "a colon stands where no key can be; look at the indentation, or put quotes around the value",
	noFit:                                         "this does not fit what stands before it; look at the indentation, at quotes and at braces",
	"did not find expected '-' indicator":         "this does not fit what stands before it; look at the indentation, at quotes and at braces",
	"did not find expected ',' or ']'":            "a list in brackets lacks a comma or its ]",
	"did not find expected ',' or '}'":            "what is in braces lacks a comma or its }",
	"did not find expected node content":          "a bracket or a brace that begins here has no end",
	"found unexpected end of stream":              "a quote that begins here has no end",
	"found unknown escape character":              "a backslash in double quotes is written twice; or use single quotes",
	"found character that cannot start any token": "a value that begins with @, %, ` or a tab needs quotes",
}

// endsKey finds a colon that ends a key.
var endsKey = regexp.MustCompile(`:(\s|$)`)

func indentation(line string) string {
	return line[:len(line)-len(strings.TrimLeft(strings.TrimPrefix(line, "\ufeff"), " \t"))]
}

// contentBefore returns the line before this one that has more than a comment, or 0.
func contentBefore(lines [][]byte, line int) int {
	for n := line - 1; n > 0; n-- {
		if text := bytes.TrimSpace(lines[n-1]); len(text) > 0 && text[0] != '#' {
			return n
		}
	}
	return 0
}

// wrongLine returns the line after the longest beginning of the file that is YAML by itself. The YAML package often names the line
// before, or the one at which the list or the mapping begins that holds the wrong line. wrongLine returns 0 if that would take too long.
//
// A beginning that ends within a quoted text or within brackets is no YAML, but a longer one is again, unless the end is missing. Then
// the line is the one with the quote or the bracket, which is what a person has to look at.
func wrongLine(lines [][]byte) int {
	total := 0
	for _, l := range lines {
		total += len(l)
	}
	if total*len(lines) > 2*maxSyntaxWork {
		return 0
	}
	wrong := 1
	var beginning []byte
	for n, l := range lines {
		beginning = append(beginning, l...)
		if isYAML(beginning) {
			wrong = n + 2
		}
	}
	return min(wrong, len(lines))
}

func isYAML(data []byte) bool {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		if err := dec.Decode(&n); err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}
