package rules

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// A place says what a package may import of ours, and by whom it may be imported. Tests may import anything.
type place struct {
	// packages are paths from the root; a last element of * stands for any one.
	packages []string
	// imports is what these packages may import; nil allows all places above.
	imports []string
	// importers are who may import these packages; nil allows all places below.
	importers []string
}

// none is for a package that imports none of ours.
var none = []string{}

// plan is the list of our packages. Imports point only up it. Packages of one place do not import each other. A package
// of the plan that does not exist yet is simply not there; a package that exists has to be in the plan.
var plan = []place{
	// What every package may use, and what imports nothing but its like.
	{
		packages: []string{
			"internal/advisory", "internal/buildinfo", "internal/dsn", "internal/exitcode", "internal/glob", "internal/shell", "internal/wait",
		},
		imports: none,
	},

	// The producer's library: whoever writes events gets nothing else with it.
	{packages: []string{"outbox"}, imports: none},
	{packages: []string{"decoder"}, imports: []string{"outbox"}},
	{packages: []string{"router"}, imports: []string{"outbox", "internal/glob"}},
	{packages: []string{"sinks"}, imports: []string{"outbox"}},
	{packages: []string{"sinks/format"}, imports: []string{"outbox", "sinks"}, importers: []string{"sinks/*", "service", "tracing"}},
	{packages: []string{"sinks/sinktest"}, imports: []string{"outbox", "sinks"}, importers: none}, // tests of sinks, also those of others
	// The destinations know each other as little as the connector knows them.
	{
		packages: []string{
			"sinks/composite", "sinks/eventbus", "sinks/kafka", "sinks/publisher", "sinks/redisstream", "sinks/stdout", "sinks/webhook",
		},
		imports: []string{"outbox", "sinks", "sinks/format", "internal/glob", "internal/shell"}, importers: []string{"service"},
	},
	// Spans say nothing that an event decides. The SDK of OpenTelemetry is linked by the command alone.
	{packages: []string{"tracing"}, imports: []string{"sinks", "sinks/format", "internal/buildinfo"}, importers: []string{"connector", "service"}},
	{packages: []string{"tracing/otlp"}, imports: []string{"internal/buildinfo"}, importers: []string{"cmd/outbox-cdc"}},
	// The tracker has no SQL, and the ledger's SQL no other owner.
	{packages: []string{"checkpoint"}, imports: []string{"outbox", "decoder", "router", "sinks"}},
	{packages: []string{"ledger"}},
	{packages: []string{"replication"}},
	{packages: []string{"migrations"}, imports: []string{"internal/advisory", "internal/exitcode", "ledger"}},
	// Packages get arguments of their own: only who builds a connector from a configuration reads it.
	{
		packages: []string{"config"}, imports: []string{"internal/dsn", "internal/exitcode"},
		importers: []string{"admin", "console", "service", "cmd/*", "test/*", "test/bench/connector"},
	},
	{packages: []string{"provision"}},
	{packages: []string{"monitoring"}, imports: []string{"internal/buildinfo"}},
	{packages: []string{"cleanup"}},
	{packages: []string{"connector"}},
	{packages: []string{"admin"}},
	{packages: []string{"console"}},
	{packages: []string{"service"}},

	// Servers and certificates for tests and for the demo.
	{packages: []string{"internal/servers/containers"}, imports: none, importers: []string{"internal/servers"}},
	{
		packages:  []string{"internal/servers"},
		imports:   []string{"internal/servers/containers"},
		importers: []string{"internal/pgtest", "internal/demo", "cmd/outbox-demo", "test/*", "test/ship/kafka"},
	},
	{packages: []string{"internal/servers/cmd/kafkafake"}, imports: []string{"internal/servers"}},
	{packages: []string{"internal/testcert", "internal/testrand"}, imports: none, importers: none},
	{packages: []string{"internal/exitcode/exitcodetest"}, imports: []string{"internal/exitcode"}, importers: none},
	{packages: []string{"internal/pgtest"}, imports: []string{"internal/servers", "migrations"}, importers: []string{"outboxtest"}},
	// The demo uses the connector as a person does.
	{
		packages: []string{"internal/demo"}, imports: []string{"outbox", "internal/servers", "internal/shell"},
		importers: []string{"cmd/outbox-demo"},
	},

	{packages: []string{"outboxtest"}, importers: none}, // tests of who embeds us
	{packages: []string{"examples/orders"}, imports: []string{"outbox", "service"}, importers: none},
	{packages: []string{"cmd/outbox-cdc"}, importers: none},
	{packages: []string{"cmd/outbox-demo"}, importers: none},

	// Programs and tests that measure or break the product from outside.
	{packages: []string{"test/process"}, imports: []string{"internal/servers"}, importers: []string{"test/*"}},
	{packages: []string{"test/bench/connector"}, imports: []string{"config", "service"}, importers: none},
	{packages: []string{"test/bench", "test/soak", "test/mutants"}, importers: none},
	{packages: []string{"test/ship/kafka"}, imports: []string{"internal/servers"}, importers: none},
	{packages: []string{"test/docs", "test/e2e", "test/observe", "test/rules", "test/ship", "test/ship/chart", "test/ship/compose"}, imports: none, importers: none},
}

// blackBox is what the tests of the built binary may import of ours: it is tested from outside.
var blackBox = []string{"outbox", "migrations", "internal/exitcode", "internal/servers", "internal/testrand"}

func matches(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, pkg)
		return ok && err == nil
	})
}

// find returns the place of a package: its number, from 0 at the top, or -1.
func find(pkg string) int {
	return slices.IndexFunc(plan, func(p place) bool { return slices.Contains(p.packages, pkg) })
}

// objection says why a package may not import another of ours; "" if it may.
func objection(from, to string) string {
	i, j := find(from), find(to)
	switch {
	case i < 0:
		return from + " is not in the plan: give it a place in test/rules/imports_test.go"
	case j < 0:
		return to + " is not in the plan: give it a place in test/rules/imports_test.go"
	case j >= i:
		return "imports point only up the plan"
	case plan[i].imports != nil && !matches(plan[i].imports, to):
		return from + " imports only " + strings.Join(plan[i].imports, ", ")
	case plan[j].importers != nil && !matches(plan[j].importers, from):
		return to + " is imported only by " + strings.Join(plan[j].importers, ", ")
	}
	return ""
}

// TestImports reads the files rather than to ask "go list -deps", which knows only those of one system and one set of build
// tags. What each file may import itself bounds what a package depends on.
func TestImports(t *testing.T) {
	t.Parallel()
	var found violations
	for _, s := range allSources(t) {
		if find(s.dir) < 0 && !strings.HasPrefix(s.dir, "tools") {
			found.add(s.dir, "%s: this package is not in the plan: give it a place in test/rules/imports_test.go", s.dir)
			continue
		}
		for _, imported := range s.packages {
			to, ours := strings.CutPrefix(imported, module+"/")
			switch {
			case !ours:
			case s.dir == "test/e2e":
				if !slices.Contains(blackBox, to) {
					found.add(s.dir+" → "+to, "%s imports %s: it tests the binary from outside", s.path, to)
				}
			case !s.test:
				if why := objection(s.dir, to); why != "" {
					found.add(s.dir+" → "+to, "%s imports %s: %s", s.path, to, why)
				}
			}
		}
	}
	found.compare(t, "imports")
}

func TestObjection(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, to, want string }{
		{"connector", "ledger", ""},
		{"service", "sinks/kafka", ""},
		{"sinks/kafka", "sinks/format", ""},
		{"cmd/outbox-cdc", "service", ""},
		{"test/bench", "config", ""},
		{"ledger", "connector", "only up"},
		{"sinks/kafka", "sinks/webhook", "only up"},
		{"outbox", "internal/glob", "imports only"},
		{"connector", "config", "is imported only by"},
		{"connector", "sinks/kafka", "is imported only by"},
		{"service", "internal/servers", "only up"},
		{"cmd/outbox-cdc", "internal/servers", "is imported only by"},
		{"utils", "outbox", "utils is not in the plan"},
		{"service", "helpers", "helpers is not in the plan"},
	} {
		got := objection(c.from, c.to)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s imports %s: %q, want %q", c.from, c.to, got, c.want)
		}
	}
	seen := map[string]bool{}
	for _, p := range plan {
		for _, pkg := range p.packages {
			if seen[pkg] {
				t.Errorf("%s stands twice in the plan", pkg)
			}
			seen[pkg] = true
		}
	}
}
