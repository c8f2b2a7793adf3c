package config

import (
	"fmt"
	"strings"
	"testing"
)

// A syntax error names the line that a person has to look at: the YAML package names the line before, or the begin of the list or
// mapping.
func TestSyntaxErrorsNameTheLine(t *testing.T) {
	t.Parallel()
	const (
		tab     = "a tab indents this line"
		quote   = "a quote that begins here has no end"
		colon   = "a colon, or the space behind it, is missing"
		misfit  = "this does not fit what stands before it"
		list    = "a list in brackets lacks a comma or its ]"
		braces  = "what is in braces lacks a comma or its }"
		noKey   = "a colon stands where no key can be"
		noStart = "needs quotes"
	)
	for _, c := range []struct {
		name, text string
		line       int
		want       string
	}{
		{"a tab", "source:\n\tslot: a\n", 2, tab},
		{"a tab behind a good line", "source:\n  slot: a\n\ttable: b\nsinks: []\n", 3, tab},
		{"a tab in a list", "sinks:\n  - type: stdout\n\t- type: kafka\n", 3, tab},
		{"a tab and spaces", "name: x\nsinks:\n  - type: kafka\n    tls:\n\t  enabled: true\n", 5, tab},
		{"a tab, and line ends of Windows", "source:\r\n  slot: a\r\n\ttable: b\r\n", 3, tab},
		{"a tab behind a byte order mark", "\ufeffsource:\n\tslot: a\n", 2, tab},
		{"a tab in an empty line", "source:\n\t\n  slot: a\n", 2, tab},
		{"an open double quote", "source:\n  slot: \"canary\n  table: b\nsinks:\n  - type: stdout\n", 2, quote},
		{"an open single quote", "source:\n  slot: 'canary\n  table: b\nsinks:\n  - type: stdout\n", 2, quote},
		{"an open quote at the end", "name: x\nsource:\n  table: b\n  slot: \"canary\n", 4, quote},
		{"an open quote, and others below", "source:\n  slot: \"canary\n  table: \"b\"\n  publication: \"c\"\n", 2, misfit},
		{"a quote in a quoted text", "source:\n  slot: 'canary's'\n  table: b\n", 2, misfit},
		{"text behind a quote", "source:\n  slot: \"a\" canary\n  table: c\n", 2, misfit},
		{"an escape that does not exist", "source:\n  slot: \"canary\\d\"\n  table: b\n", 2, "a backslash in double quotes"},
		{"an open bracket", "sinks:\n  - {type: kafka, brokers: [a:1, b:2}\nroutes: []\n", 2, list},
		{"an open bracket between others", "name: x\nsinks:\n  - {type: kafka, brokers: [a:1}\n  - {type: stdout}\nroutes: []\n", 3, list},
		{"an open bracket at the end", "source:\n  slot: a\nroutes: [\n", 3, "has no end"},
		{"an open brace", "sinks:\n  - {type: kafka\nroutes: []\nhttp: {listen: off}\n", 2, braces},
		{"a bracket too many", "sinks:\n  - {type: kafka, brokers: a]}\nhttp: {}\n", 2, braces},
		{"a brace too many", "sinks:\n  - {type: kafka}}\nhttp: {}\n", 2, misfit},
		{"no comma", "sinks:\n  - {type: kafka brokers: [a:1]}\nhttp: {}\n", 2, braces},
		{"a field in braces without quotes", "sinks:\n - type: kafka\n   topic: {canary}.x\n   key: x\n", 3, misfit},
		{"no colon", "source:\n  slot canary\n  table: b\n", 2, colon},
		{"no colon between keys", "source:\n  table: b\n  slot canary\n  publication: c\n", 3, colon},
		{"no colon of a section", "name: x\nsource\n  slot: a\n", 2, colon},
		{"no colon of a section within", "name: x\nsource:\n  columns # of the table\n\n    # the id\n    id: x\n", 3, colon},
		{"no space behind a colon", "source:\n  slot:canary\n  table: b\n", 2, colon},
		{"too deep", "source:\n  slot: a\n    table: b\n", 3, noKey},
		{"not deep enough", "source:\n    slot: a\n  table: b\nsinks: []\n", 3, misfit},
		{"not deep enough in a list", "sinks:\n  - type: kafka\n    brokers: [a:1]\n   topic: x\n", 4, misfit},
		{"a key in a list", "sinks:\n  - type: kafka\n  topic: x\n", 3, misfit},
		{"a list among keys", "source:\n  slot: a\n  - canary\n", 3, misfit},
		{"no space behind a dash", "sinks:\n  - type: kafka\n  -type: stdout\n", 3, misfit},
		{"less deep than a text of several lines", "name: |\n    a\n    b\n  c: d\n", 4, misfit},
		{"a colon in a value", "source:\n  dsn: host=a: canary\n", 2, noKey},
		{"an at sign", "source:\n  slot: @canary\n", 2, noStart},
		{"a percent sign", "source:\n  slot: %canary\n", 2, noStart},
		{"an alias", "source:\n  slot: *canary\n", 2, "a value that begins with * needs quotes"},
		{"an anchor without a name", "source:\n  slot: &\n  table: a\n", 2, ""},
		{"a control character", "name: a\nsource: \x01\n", 2, ""},
		{"not UTF-8", "name: a\nsource: \xff\n", 2, ""},
	} {
		_, _, err := Parse("f.yml", []byte(c.text), []string{"DATABASE_URL=postgres://localhost/shop"}, Options{NoSinks: true})
		if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("f.yml:%d: is no YAML: ", c.line)) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want line %d and %q", c.name, err, c.line, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: a value is told: %v", c.name, err)
		}
	}
}

// The search for the line ends soon, also for a file that is no configuration at all.
func TestSyntaxErrorOfALargeFile(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("a: b\n", 200_000) + "\tc: d\n"
	if _, _, err := Parse("f.yml", []byte(text), nil, Options{}); err == nil || !strings.Contains(err.Error(), "is no YAML") {
		t.Errorf("%v", err)
	}
}

// A sink whose type is wrong keeps its name: a second sink of that name is reported beside it, and what names it is no mistake.
func TestNameOfASinkOfNoType(t *testing.T) {
	t.Parallel()
	const text = `source: {dsn: "postgres://localhost/shop"}
sinks:
  - {name: events, type: kafak}
  - {name: events, type: stdout}
  - {name: log, type: stdout}
  - {name: log}
  - {name: both, type: composite, members: [events, log]}
routes: [{sinks: [both]}]
`
	const want = `f.yml:3: sinks[0].type: "kafak" is no type of sink; write one of kafka, redis_stream, webhook, event_bus, composite, stdout
f.yml:4: sinks[1].name: "events" is the name of sinks[0] already; the ledger knows a sink by its name
f.yml:6: sinks[3].type: missing; write one of kafka, redis_stream, webhook, event_bus, composite, stdout
f.yml:6: sinks[3].name: "log" is the name of sinks[2] already; the ledger knows a sink by its name`
	_, _, err := Parse("f.yml", []byte(text), nil, Options{})
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}
