package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// snippet is the first block of a language behind a heading (or the beginning of one) of a page in docs.
func snippet(t testing.TB, page, heading, language string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n"+heading)
	_, code, begins := strings.Cut(section, "\n```"+language+"\n")
	code, _, ends := strings.Cut(code, "\n```\n")
	if !found || !begins || !ends {
		t.Fatalf("docs/%s has no %s behind %q", page, language, heading)
	}
	return code
}

// printed is an event as the sink stdout shows it, without what differs from run to run.
type printed struct {
	AggregateType string          `json:"aggregate_type"`
	AggregateID   string          `json:"aggregate_id"`
	EventType     string          `json:"event_type"`
	EventVersion  int             `json:"event_version"`
	Payload       string          `json:"payload"`
	Metadata      json.RawMessage `json:"metadata"`
	CorrelationID string          `json:"correlation_id"`
}

// The Python program of the page writes an order and its event; the statements of the other programs are run with what
// these give them. All arrive.
func TestOtherLanguages(t *testing.T) {
	t.Parallel()
	const page = "other-languages.md"
	w := newWorld(t, worldOptions{sinks: []string{"stdout"}})
	w.exec("create table orders (id bigint primary key, total int)")

	program := filepath.Join(t.TempDir(), "orders.py")
	if err := os.WriteFile(program, []byte(snippet(t, page, "## Python", "python")), 0o600); err != nil {
		t.Fatal(err)
	}
	python := exec.CommandContext(t.Context(), pythonWithPsycopg(t), program)
	python.Env = append(os.Environ(), "DATABASE_URL="+w.dsn)
	if out, err := python.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := ask[int](w, "select total from orders where id = 42"); n != 1999 {
		t.Errorf("the order has total %d", n)
	}

	const trace = `{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`
	statement := regexp.MustCompile(`(?s)insert into event_outbox .*?\n *values \([^)]*\)`)
	for i, language := range []struct{ heading, name string }{{"## Java", "java"}, {"## Node", "js"}} {
		sql := statement.FindString(snippet(t, page, language.heading, language.name))
		if sql == "" {
			t.Fatalf("no statement in %s", language.name)
		}
		for n := 1; strings.Contains(sql, "?"); n++ {
			sql = strings.Replace(sql, "?", fmt.Sprintf("$%d", n), 1)
		}
		id := 43 + i
		w.exec(sql, fmt.Sprintf("11111111-1111-4111-8111-11111111111%d", i), "order", fmt.Sprint(id), "order.placed",
			fmt.Sprintf(`{"id": %d, "total": 2999}`, id), trace, "request-8")
	}

	c := w.connector()
	c.start()
	c.ready("leader")
	w.deliveredAtLeast(30*time.Second, 3)
	c.term()
	output, err := os.ReadFile(c.last().stdout)
	if err != nil {
		t.Fatal(err)
	}
	var got []printed
	for line := range bytes.Lines(output) {
		var p printed
		if err := json.Unmarshal(line, &p); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		got = append(got, p)
	}
	slices.SortFunc(got, func(a, b printed) int { return strings.Compare(a.AggregateID, b.AggregateID) })
	want := []printed{
		{"order", "42", "order.placed", 1, `{"id": 42, "total": 1999}`, json.RawMessage(trace), "request-7"},
		{"order", "43", "order.placed", 1, `{"id": 43, "total": 2999}`, json.RawMessage(trace), "request-8"},
		{"order", "44", "order.placed", 1, `{"id": 44, "total": 2999}`, json.RawMessage(trace), "request-8"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// pythonWithPsycopg is the first python3 that has it: the one on the PATH need not be the one of the system, for which
// scripts/deps installs it.
func pythonWithPsycopg(t testing.TB) string {
	t.Helper()
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), python, "-c", "import psycopg").Run() == nil {
			return python
		}
	}
	t.Fatal("no python3 with psycopg; run scripts/deps")
	return ""
}
