package main

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// A script can tell "nothing is missing" from "nobody knows".
func TestVerifyEnd(t *testing.T) {
	t.Parallel()
	sink := func(missing, pending int64) []admin.VerifiedSink {
		return []admin.VerifiedSink{{Missing: missing, Pending: pending}}
	}
	for _, test := range []struct {
		result admin.VerifyResult
		want   exitcode.Code
	}{
		{admin.VerifyResult{Decided: true, Sinks: sink(0, 7)}, exitcode.OK},
		{admin.VerifyResult{Sinks: sink(0, 0)}, exitcode.OK},
		{admin.VerifyResult{Sinks: sink(0, 7)}, exitcode.Undecided},
		{admin.VerifyResult{Missing: 1, Sinks: sink(1, 7)}, exitcode.Failure},
	} {
		if got := exitcode.Of(verifyEnd(test.result)); got != test.want {
			t.Errorf("%+v: exit code %d, want %d", test.result, got, test.want)
		}
	}
}

// What skip and verify do not understand is a usage error, before anything is connected to.
func TestWrongInputOfSkipAndVerify(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"skip":                              "say what to pass, such as --lsn 0/1A2B3C8; the connector's message names it",
		"skip --lsn 12":                     `--lsn "12" is no LSN; write it as the connector's message does, such as 0/1A2B3C8`,
		"skip --lsn 0/0":                    `--lsn "0/0" is no LSN; write it as the connector's message does, such as 0/1A2B3C8`,
		"skip --lsn 0/1G":                   `--lsn "0/1G" is no LSN; write it as the connector's message does, such as 0/1A2B3C8`,
		"skip --lsn 0/12x":                  `--lsn "0/12x" is no LSN; write it as the connector's message does, such as 0/1A2B3C8`,
		"skip --lsn 0/1A2B3C8":              "outbox-cdc skip asks before it changes anything, and here is no terminal to ask at; look with --dry-run, then use --yes",
		"skip 0/1A2B3C8":                    `outbox-cdc skip takes no arguments, and got ["0/1A2B3C8"]; see outbox-cdc skip --help`,
		"skip --lsn 0/1A2B3C8 -o yaml":      `no output format "yaml"; write text or json`,
		"verify now":                        `outbox-cdc verify takes no arguments, and got ["now"]; see outbox-cdc verify --help`,
		"verify --limit -1":                 "--limit -1 is less than 0",
		"verify -o table":                   `no output format "table"; write text or json`,
		"verify --since yesterday":          `--since "yesterday" is no time`,
		"verify --since 7d --until 1d":      "unknown flag: --until; see outbox-cdc verify --help",
		"skip --lsn 0/1A2B3C8 --yes --help": "",
	} {
		got := command(t, nil, strings.Fields(line)...)
		if want == "" {
			if got.code != 0 {
				t.Errorf("%s: code %d, %s", line, got.code, got.stderr)
			}
			continue
		}
		if got.code != 2 || got.stdout != "" || !strings.HasPrefix(got.stderr, want) {
			t.Errorf("%s: code %d, stdout %q, stderr %q, want 2 and %q", line, got.code, got.stdout, got.stderr, want)
		}
	}
}
