package monitoring

import (
	"fmt"
	"io"
	"strings"
)

// WriteMetricsPage writes the table of metrics as a page of Markdown, their names beginning with prefix. docs/metrics.md is this page.
func WriteMetricsPage(w io.Writer, prefix string) error {
	var b strings.Builder
	b.WriteString(`# Metrics

What ` + "`GET /metrics`" + ` shows beside the metrics of the Go runtime and of the process.
This page is made from the table by which the metrics are registered.
[numbers.md](numbers.md) says how old a number may be, [operations.md](operations.md) what to do about it.

Labels are names of the configuration or a handful of words. Nothing of an event becomes a label.
`)
	for _, g := range Catalogue() {
		if len(g.Families) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n", g.Question)
		for _, f := range g.Families {
			fmt.Fprintf(&b, "\n### `%s%s`\n\n%s", prefix, f.Name, f.Type)
			if len(f.Labels) > 0 {
				fmt.Fprintf(&b, " by `%s`", strings.Join(f.Labels, "`, `"))
			}
			fmt.Fprintf(&b, ", in %s\n\n%s\n\n%s\n", f.Unit, fold(f.Help), fold("Investigate if: "+f.Investigate))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fold breaks a text into lines of at most 118 characters.
func fold(text string) string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > 118 {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return strings.Join(append(lines, line), "\n")
}
