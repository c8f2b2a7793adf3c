package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

const oneID = "00000000-0000-7000-8000-000000000001"

// ledger is a database with a dead letter and a parked event of the sink "partner", and the environment that leads to it.
func ledger(t *testing.T) (*pgx.Conn, []string) {
	t.Helper()
	d := pgtest.New(t)
	conn := d.Conn(t)
	_, err := conn.Exec(t.Context(), `insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'orders', 'partner', 'webhook');
		insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, attempts, tries, error_message, event, payload) values
			(1, '0/1', 0, '`+oneID+`', 1, 'dead', 4, 5, E'status 400: \x1b[2Jno', '{"aggregate_type":"order","aggregate_id":"42","event_type":"order.made","tenant_id":"acme"}', '{"secret": "canary"}'),
			(1, '0/2', 0, '00000000-0000-7000-8000-000000000002', 1, 'parked', 0, 0, null, '{"aggregate_type":"order","aggregate_id":"42","event_type":"order.paid"}', '\xff')`)
	if err != nil {
		t.Fatal(err)
	}
	return conn, []string{"DATABASE_URL=" + d.DSN, "SERVICE_NAME=orders"}
}

func TestUsageErrorsOfTheLedgerCommands(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"dlq lits":                                  `outbox-cdc dlq has no command "lits"; did you mean list?`,
		"dlq list all":                              `outbox-cdc dlq list takes no arguments, and got ["all"]; see outbox-cdc dlq list --help`,
		"dlq list -o text":                          `no output format "text"; write table or json`,
		"dlq list --limit 0":                        `--limit 0 is not within 1 and 10000`,
		"dlq list --limit many":                     `invalid argument "many" for "--limit" flag: strconv.ParseInt: parsing "many": invalid syntax; see outbox-cdc dlq list --help`,
		"dlq list --since yesterday":                `--since "yesterday" is no time; write 2006-01-02T15:04:05Z, 2006-01-02, or how long ago: 90m, 3d, 1d12h`,
		"dlq list --until -5m":                      `--until "-5m" is no time; write 2006-01-02T15:04:05Z, 2006-01-02, or how long ago: 90m, 3d, 1d12h`,
		"dlq list --until 0001-01-01":               `--until "0001-01-01" is no time; write 2006-01-02T15:04:05Z, 2006-01-02, or how long ago: 90m, 3d, 1d12h`,
		"dlq list --since 1h --until 2h":            `--since is not before --until`,
		"dlq show --limit 0":                        `--limit 0 is not within 1 and 10000`,
		"dlq show --sink=,":                         `--sink names nothing`,
		"dlq retry --sink= --type a":                `--sink names nothing`,
		"dlq list --type=":                          `--type names nothing`,
		"dlq retry":                                 `say what to retry, by --id, --sink, --type or another filter, or write --all`,
		"dlq retry --all --sink a":                  `--all and filters exclude each other`,
		"dlq retry --all --rate -1":                 `--rate -1: write rows a second, or 0 for as fast as they go`,
		"dlq retry --all --yes":                     `unknown flag: --yes; see outbox-cdc dlq retry --help`,
		"dlq retry --all -o table":                  `no output format "table"; write text or json`,
		"dlq discard --sink a":                      `outbox-cdc dlq discard asks before it changes anything, and here is no terminal to ask at; look with --dry-run, then use --yes`,
		"dlq kill --all":                            `outbox-cdc dlq kill asks before it changes anything, and here is no terminal to ask at; look with --dry-run, then use --yes`,
		"dlq purge":                                 `say how long ago they must have died, such as --older-than 30d; dlq discard takes other filters`,
		"dlq purge --older-than=":                   `say how long ago they must have died, such as --older-than 30d; dlq discard takes other filters`,
		"dlq purge --older-than 30":                 `--older-than "30" is no age; write 30d, 1d12h or 90m`,
		"dlq purge --older-than 0":                  `--older-than "0" is no age; write 30d, 1d12h or 90m`,
		"dlq purge --older-than -1d":                `--older-than "-1d" is no age; write 30d, 1d12h or 90m`,
		"dlq purge --older-than off":                `--older-than "off" is no age; write 30d, 1d12h or 90m`,
		"dlq purge --older-than 99999d":             `--older-than "99999d" is no age; write 30d, 1d12h or 90m`,
		"dlq purge --older-than 0s":                 `--older-than 0s would delete every dead letter; if you mean that, use dlq discard --all`,
		"dlq purge --older-than 1d":                 `outbox-cdc dlq purge asks before it changes anything, and here is no terminal to ask at; look with --dry-run, then use --yes`,
		"dlq purge --older-than 1d --sink= --yes":   `--sink names nothing`,
		"dlq purge --older-than 1d --sink a, --yes": `--sink names nothing`,
		"dlq purge --older-than 1d -o table":        `no output format "table"; write text or json`,
		"dlq purge 30d --yes":                       `outbox-cdc dlq purge takes no arguments, and got ["30d"]; see outbox-cdc dlq purge --help`,
		"events list --status lost":                 `no status "lost"; write parked, dead, failed, discarded, delivered, pending`,
		"events show":                               `outbox-cdc events show takes the id of one event; see outbox-cdc events show --help`,
		"pause":                                     `say which sink to pause; see outbox-cdc pause --help`,
		"retry":                                     `say which sink to retry, or write --all; see outbox-cdc retry --help`,
		"retry a --all":                             `--all and the names of sinks exclude each other`,
		"retry a -o table":                          `no output format "table"; write text or json`,
		"resume":                                    `say which sink to resume; see outbox-cdc resume --help`,
	} {
		got := command(t, []string{"DATABASE_URL=postgres://127.0.0.1:1/nowhere"}, strings.Fields(line)...)
		if got.code != 2 || got.stdout != "" || got.stderr != want+"\n" {
			t.Errorf("%s: code %d, stdout %q, stderr %q, want 2 and %q", line, got.code, got.stdout, got.stderr, want)
		}
	}
	for _, line := range []string{"dlq list", "dlq retry --all", "dlq purge --older-than 1d --dry-run", "events list", "pause a", "retry a"} {
		if got := command(t, []string{"DATABASE_URL=postgres://127.0.0.1:1/nowhere"}, strings.Fields(line)...); got.code != exitcode.Unavailable {
			t.Errorf("%s: code %d, stderr %q, want %d", line, got.code, got.stderr, exitcode.Unavailable)
		}
		if got := command(t, nil, strings.Fields(line)...); got.code != exitcode.Config {
			t.Errorf("%s without DATABASE_URL: code %d, stderr %q, want %d", line, got.code, got.stderr, exitcode.Config)
		}
	}
}

func TestDLQ(t *testing.T) {
	t.Parallel()
	conn, environ := ledger(t)
	run := func(line string, code exitcode.Code, stdout, stderr string) string {
		t.Helper()
		got := command(t, environ, strings.Fields(line)...)
		if got.code != code || !strings.Contains(got.stdout, stdout) || !strings.Contains(got.stderr, stderr) {
			t.Errorf("%s: code %d, want %d\nstdout: %s\nstderr: %s", line, got.code, code, got.stdout, got.stderr)
		}
		if strings.Contains(line, "--payload") != strings.Contains(got.stdout, "canary") || strings.Contains(got.stdout, "\x1b") {
			t.Errorf("%s shows what it should not, or not what it should:\n%s", line, got.stdout)
		}
		return got.stdout
	}
	run("dlq list", 0, oneID+"  partner  order.made  order/42", "")
	run("dlq list --type x", 0, `no dead letter matches (type "x")`, "")
	run("dlq list --sink x", 1, "", `no sink "x"; those of connector "orders" are: partner`)
	run("dlq show "+oneID, 0, "error:          status 400: �[2Jno\n", "")
	run("dlq show --tenant acme --payload", 0, `payload:        {"secret": "canary"}`, "")
	run("dlq show "+oneID+" --tenant x", 1, "", "and the other filters leave it out")
	run("events list --status parked", 0, "a connector: none streams", "")
	run("events list --status failed", 0, "no events\n", "")
	run("events show 00000000-0000-7000-8000-000000000002", 0, "status:         parked", "")
	run("events show 00000000-0000-7000-8000-000000000003", 1, "", "nothing is known of event")
	// What shows one event has all that the destination answered; lists have its beginning.
	answer := "status 500; it answered: " + strings.Repeat("x", 1024) + "."
	if _, err := conn.Exec(t.Context(), `insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, error_message, commit_lsn, tx_index, epoch)
		values ($1, 1, 1, 'failed', now(), $2, '0/1', 0, 1)`, oneID, answer); err != nil {
		t.Fatal(err)
	}
	run("events show "+oneID, 0, answer, "")
	run("dlq show "+oneID, 0, answer, "")
	if list := run("events list --status failed", 0, "it answered: xx", ""); strings.Contains(list, answer) {
		t.Errorf("a list shows all of an answer:\n%s", list)
	}
	for _, payload := range []string{"", " --payload"} {
		var line struct {
			Sink    string
			Payload *struct{ Secret string }
		}
		if err := json.Unmarshal([]byte(run("dlq export"+payload, 0, "", "")), &line); err != nil || line.Sink != "partner" || (line.Payload != nil) != (payload != "") {
			t.Errorf("export%s: %+v, %v", payload, line, err)
		}
	}
	run("dlq export --type x", 0, "", "")
	run("dlq retry --all --dry-run", 0, "would retry 1 event (1 of partner)\n", "")
	run("pause partner", 0, "partner is paused; 1 parked\n", "")
	run("dlq retry --type order.*", 0, "retried: 1 event (1 of partner)\npartner is paused: they wait until outbox-cdc resume partner\n", "")
	if got := command(t, environ, "events", "list", "--status", "parked", "--id", oneID+", 00000000-0000-7000-8000-000000000002"); strings.Count(got.stdout, "  partner  ") != 2 {
		t.Errorf("two ids: %s%s", got.stdout, got.stderr)
	}
	run("dlq retry --id "+oneID, 1, "", "it is no dead letter, but parked at partner; nothing was changed")
	run("events list --status parked", 0, "the sink is paused", "")
	run("retry partner", 0, "partner is paused: nothing is tried until outbox-cdc resume partner; 2 parked\n", "")
	run("resume partner", 0, "partner is delivered to; 2 parked\nno connector streams from slot \"outbox_cdc\" now: partner is delivered to when one does\n", "")
	run("retry partner", 0, "partner: 2 parked, of which 0 were not due yet\n"+
		"no connector streams from slot \"outbox_cdc\" now: sinks are asked when one does\n", "")
	run("retry --all -o json", 0, `"made_due": 0`, "")
	run("retry x", 1, "", `no sink "x"; those of connector "orders" are: partner`)
	for line, want := range map[string]string{ // the configuration has another sink
		"retry partner":  "partner is not in this configuration, with which nobody asks it; 2 parked, of which 0 were not due yet\n",
		"resume partner": "partner is not paused, as it was before; 2 parked\npartner is not in this configuration, with which nobody delivers to it\n",
	} {
		if got := command(t, append(slices.Clone(environ), "OUTBOX_PUBLISHER_TYPE=stdout"), strings.Fields(line)...); got.stdout != want {
			t.Errorf("%s: %s%s", line, got.stdout, got.stderr)
		}
	}
	run("resume partner", 0, "partner is delivered to, as it was before; 2 parked\nno connector streams", "")
	run("dlq kill --id "+oneID+" --reason closed --yes", 0, "killed: 1 event (1 of partner)\n", "")
	run("dlq discard --all --yes -o json", 0, `"changed": 1`, "")
	run("dlq discard --all --yes", 1, "", "there is no dead letter; nothing was changed")
	run("dlq list", 0, "no dead letters\n", "")
	run("dlq list -o json", 0, `"dead_letters": []`, "")
	var log string
	err := conn.QueryRow(t.Context(), "select string_agg(concat_ws(' ', status, error_message), ', ' order by id) from outbox_delivery_log where status <> 'failed'").Scan(&log)
	if err != nil || !strings.HasPrefix(log, "dead killed by ") || !strings.Contains(log, ": closed, discarded discarded by ") {
		t.Errorf("log: %s, %v", log, err)
	}
}

func TestAskYes(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]bool{"y\n": true, " YES \n": true, "y": true, "n\n": false, "\n": false, "": false, "yesterday\n": false} {
		var out bytes.Buffer
		err := askYes(strings.NewReader(answer), &out, "Delete 1 event?")
		if (err == nil) != want || out.String() != "Delete 1 event? [y/N] " {
			t.Errorf("answer %q: %v, asked %q", answer, err, out.String())
		}
	}
}

// The names are those that the commands take: not a composite whose members are the sinks, nor the members of one that is a sink itself.
func TestSinkNamesAreCompleted(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "outbox.yaml")
	text := `sinks:
  - {name: both, type: composite, strategy: all, members: [partner, log]}
  - {name: partner, type: stdout}
  - {name: log, type: stdout}
  - {name: first, type: composite, strategy: any, members: [a, b]}
  - {name: a, type: stdout}
  - {name: b, type: stdout}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"pause --config FILE", "retry --config FILE", "dlq list --config FILE --sink", "dlq purge --config FILE --sink"} {
		args := append([]string{"__complete"}, strings.Fields(strings.ReplaceAll(line, "FILE", file))...)
		got := command(t, nil, append(args, "")...)
		if got.code != 0 || !strings.HasPrefix(got.stdout, "partner\nlog\nfirst\n:") {
			t.Errorf("%s: code %d, %q, %q", line, got.code, got.stdout, got.stderr)
		}
	}
}
