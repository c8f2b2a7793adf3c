package main

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	const good = "Rule: 3\nBreaks: something\nTest: ./checkpoint -run '^TestX$/^y$'\n\n--- a/x.go\n+++ b/x.go\n"
	m, err := parse(good)
	if want := (mutant{paths: []string{"x.go"}, rule: 3, test: test{"./checkpoint", "^TestX$/^y$"}}); err != nil || !reflect.DeepEqual(m, want) {
		t.Errorf("got %+v, %v", m, err)
	}
	if name := m.test.name(); name != "TestX" {
		t.Errorf("name %q", name)
	}
	for what, change := range map[string][2]string{
		"no diff":          {"--- a/x.go", ""},
		"no rule":          {"Rule: 3\n", ""},
		"rule 13":          {"Rule: 3", "Rule: 13"},
		"no explanation":   {"Breaks: something\n", "Breaks: \n"},
		"no test":          {"Test: ", "Tests: "},
		"open pattern":     {"^TestX$/^y$", "TestX"},
		"no package":       {"./checkpoint ", ""},
		"header too late":  {"Rule: 3\n", "--- a/y.go\nRule: 3\n"},
		"pattern unquoted": {"'^TestX$/^y$'", "^TestX$"},
	} {
		if m, err := parse(strings.Replace(good, change[0], change[1], 1)); err == nil {
			t.Errorf("%s: %+v", what, m)
		}
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	x := test{"./p", "^TestX$"}
	failed := errors.New("exit status 1")
	for want, tt := range map[string]struct {
		out string
		err error
	}{
		"":          {"=== RUN   TestX\n--- FAIL: TestX (0.00s)\nFAIL\n", failed},
		"SURVIVED":  {"--- PASS: TestX (0.00s)\nPASS\n", nil},
		"TIMED OUT": {"panic: test timed out after 2m0s\nrunning tests:\n\tTestX (2m0s)\n", failed},
		"CRASHED":   {"panic: boom\ngoroutine 7\n", failed},
	} {
		got := ""
		if err := verdict(tt.out, tt.err, x); err != nil {
			got, _, _ = strings.Cut(err.Error(), ":")
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", tt.out, got, want)
		}
	}
	labelled := "panic: boom\n\ngoroutine 7 [running, synctest bubble 2 labels:{\"test\": \"TestX\"}]:\n"
	if err := verdict(labelled, failed, x); err != nil {
		t.Errorf("a goroutine of the test has panicked: %v", err)
	}
	sub := test{"./p", "^TestX$/^y$"}
	for out, want := range map[string][2]bool{
		"--- PASS: TestX (0.00s)\n    --- PASS: TestX/y (0.00s)\nPASS\n":              {true, true},
		"--- PASS: TestX (0.00s)\nPASS\n":                                             {true, false},
		"testing: warning: no tests to run\nPASS\n":                                   {false, false},
		"--- SKIP: TestX (0.00s)\nPASS\n":                                             {false, false},
		"--- PASS: TestXY (0.00s)\nPASS\n":                                            {false, false},
		"--- PASS: TestX (0.00s)\n    --- SKIP: TestX/y (0.00s)\n        why\nPASS\n": {true, false},
	} {
		if got := [2]bool{ran(out, x), ran(out, sub)}; got != want {
			t.Errorf("%q: got %t, want %t", out, got, want)
		}
	}
}

func TestRulesAreCovered(t *testing.T) {
	t.Parallel()
	mutants, err := readMutants(".")
	if err != nil {
		t.Fatal(err)
	}
	if err := covered(mutants); err != nil {
		t.Error(err)
	}
	if err := covered(mutants[:0]); err == nil {
		t.Error("no mutants cover everything")
	}
	if _, err := choose(mutants, []string{"1-*"}); err != nil {
		t.Error(err)
	}
	if _, err := choose(mutants, []string{"nothing*"}); err == nil {
		t.Error("a pattern that matches none is no mistake")
	}
}
