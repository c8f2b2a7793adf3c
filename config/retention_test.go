package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAge(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"0s": 0, "0d": 0, "90m": 90 * time.Minute, "36h": 36 * time.Hour, "7d": 7 * day, "1d12h": 36 * time.Hour, "1d0.5h": day + 30*time.Minute,
		"36500d": maxAge, "876000h": maxAge,
	} {
		a, err := ParseAge(text)
		if err != nil || a.Duration() != want || a.Off() || string(a) != text {
			t.Errorf("%s: %v, %v, off %v, %v, want %v", text, a, a.Duration(), a.Off(), err, want)
		}
	}
	for _, text := range []string{"off", "OFF", "Off"} {
		if a, err := ParseAge(text); err != nil || !a.Off() || a != "off" || a.Duration() <= maxAge {
			t.Errorf("%s: %q, %v, %v", text, a, a.Duration(), err)
		}
	}
	for text, want := range map[string]string{
		"0":                      "means two things",
		"-7d":                    "is negative",
		"-1h":                    "is negative",
		"36501d":                 "is longer than 36500d",
		"36500d1s":               "is longer than 36500d",
		"876001h":                "is longer than 36500d",
		"99999999999999999999d":  "is longer than 36500d",
		"99999999999999999999h":  "is no age",
		"":                       "is no age",
		"7":                      "is no age",
		"7 d":                    "is no age",
		"7D":                     "is no age",
		"1w":                     "is no age",
		"1.5d":                   "is no age",
		"12h1d":                  "is no age",
		"1d2d":                   "is no age",
		"1d-1h":                  "is no age",
		"+7d":                    "is no age",
		"d":                      "is no age",
		"never":                  "is no age",
		"false":                  "is no age",
		"7d\n":                   "is no age",
		strings.Repeat("9", 400): "is no age",
	} {
		a, err := ParseAge(text)
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "off") {
			t.Errorf("%q: %v, want %s, with off among the remedies", text, err, want)
		}
		if !a.Off() {
			t.Errorf("%q counts as %s: other mistakes would follow from it", text, a)
		}
	}
}

// What is kept, and for how long, by the file, the variables and the defaults.
func TestRetention(t *testing.T) {
	t.Parallel()
	const mapped = "source: {table: shop.outbox}\n"
	for _, c := range []struct {
		name, file string
		environ    []string
		want       Retention
		warning    string
	}{
		{name: "the defaults", want: Retention{"7d", "7d"}},
		{name: "no values", file: "retention: {outbox: , ledger: }", want: Retention{"7d", "7d"}},
		{name: "as it was written", file: "retention: {outbox: 36h, ledger: 1d12h}", want: Retention{"36h", "1d12h"}},
		{name: "the ledger follows a longer outbox", file: "retention: {outbox: 30d}", want: Retention{"30d", "30d"}},
		{name: "and no shorter one", file: "retention: {outbox: 1h}", want: Retention{"1h", "7d"}},
		{name: "settled is enough", file: "retention: {outbox: 0s, ledger: 0s}", want: Retention{"0s", "0s"}},
		{name: "off", file: "retention: {outbox: off, ledger: OFF}", want: Retention{AgeOff, AgeOff}},
		{name: "the ledger alone", file: "retention: {outbox: off, ledger: 1h}", want: Retention{AgeOff, "1h"}},
		{name: "a mapped table", file: mapped, want: Retention{AgeOff, "7d"}},
		{name: "mapped columns", file: "source: {columns: {tenant_id: tenant}}", want: Retention{AgeOff, "7d"}},
		{name: "a ledger elsewhere", file: "source: {ledger_schema: cdc}", want: Retention{AgeOff, "7d"}},
		{name: "an outbox that init makes elsewhere", file: "source: {table: shop.event_outbox}", want: Retention{"7d", "7d"}},
		{name: "a mapped table whose rows may go", file: mapped + "retention: {outbox: 3d}", want: Retention{"3d", "7d"}},
		{name: "days", environ: []string{"OUTBOX_RETENTION_DAYS=30"}, want: Retention{"30d", "30d"}},
		{name: "days in quotes", environ: []string{"OUTBOX_RETENTION_DAYS=\"3\"\n"}, want: Retention{"3d", "7d"}},
		{name: "days beat the file", file: mapped + "retention: {outbox: off, ledger: 90d}", environ: []string{"OUTBOX_RETENTION_DAYS=30"}, want: Retention{"30d", "90d"}},
		{name: "empty variables", file: "retention: {outbox: 1d, ledger: 2d}", environ: []string{
			"OUTBOX_RETENTION_DAYS=", "OUTBOX_RETENTION_OUTBOX=", "OUTBOX_RETENTION_LEDGER=",
		}, want: Retention{"1d", "2d"}},
		{name: "variables beat the file", file: "retention: {outbox: 1d, ledger: 2d}", environ: []string{
			"OUTBOX_RETENTION_OUTBOX=36h", "OUTBOX_RETENTION_LEDGER=off",
		}, want: Retention{"36h", AgeOff}},
		{name: "the file places the days", file: "retention: {outbox: '${OUTBOX_RETENTION_DAYS}d'}", environ: []string{"OUTBOX_RETENTION_DAYS=5"}, want: Retention{"5d", "7d"}},
		{name: "both variables, the same", environ: []string{"OUTBOX_RETENTION_DAYS=2", "OUTBOX_RETENTION_OUTBOX=48h"}, want: Retention{"48h", "7d"}},
		{
			name: "both variables", environ: []string{"OUTBOX_RETENTION_DAYS=7", "OUTBOX_RETENTION_OUTBOX=off"}, want: Retention{AgeOff, "7d"},
			warning: "OUTBOX_RETENTION_OUTBOX=off is used, and OUTBOX_RETENTION_DAYS=7, which says something else, is not",
		},
		{
			name: "the remedy for 0 days", environ: []string{"OUTBOX_RETENTION_DAYS=0", "OUTBOX_RETENTION_OUTBOX=0s"}, want: Retention{"0s", "7d"},
			warning: "OUTBOX_RETENTION_OUTBOX=0s is used, and OUTBOX_RETENTION_DAYS=0, which says something else, is not",
		},
	} {
		got, warnings, err := Parse("f.yml", []byte(c.file), append(c.environ, "DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=stdout"), Options{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got.Retention); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if all := strings.Join(warnings, "\n"); all != c.warning {
			t.Errorf("%s: warnings %q, want %q", c.name, all, c.warning)
		}
		text, err := Effective(got)
		if want := "  outbox: " + yamlText(string(c.want.Outbox)) + "\n  ledger: " + yamlText(string(c.want.Ledger)) + "\n"; err != nil || !strings.Contains(text, want) {
			t.Errorf("%s: the effective configuration lacks\n%s%v\n%s", c.name, want, err, text)
		}
	}
}

func TestRetentionMistakes(t *testing.T) {
	t.Parallel()
	const noTime = "source: {table: shop.outbox, columns: {created_at: ''}}\n"
	const shorter = "so it has to be kept as long; write "
	for _, c := range []struct {
		name, file string
		environ    []string
		want       string
	}{
		{
			name: "everything at once", file: "retention:\n  outbox: -7d\n  ledger: 7\n  metrics: 7d\n",
			want: `f.yml:2: retention.outbox: "-7d" is negative; write 7d, 1d12h or 90m, or off to keep rows for ever
f.yml:3: retention.ledger: "7" is no age; write 7d, 1d12h or 90m, or off to keep rows for ever
f.yml:4: retention.metrics: unknown key; known here: outbox, ledger`,
		},
		{
			name: "0", file: "retention: {outbox: 0}",
			want: `f.yml:1: retention.outbox: "0" means two things to people; write 0s to delete rows as soon as they are settled, or off to keep them`,
		},
		{name: "a list", file: "retention: {outbox: [7d]}", want: "f.yml:1: retention.outbox: must be one value, not a list"},
		{name: "one value", file: "retention: 7d", want: "f.yml:1: retention: must hold keys, not one value"},
		{
			name: "a ledger that is shorter", file: "retention:\n  outbox: 8d\n  ledger: 191h",
			want: "f.yml:3: retention.ledger: 191h is shorter than retention.outbox (8d, f.yml:2): the log says which rows of the outbox may be deleted, " +
				shorter + "8d or more, or a shorter retention.outbox",
		},
		{
			name: "shorter than the default", file: "retention: {ledger: 6d}",
			want: "f.yml:1: retention.ledger: 6d is shorter than retention.outbox (7d by default): the log says which rows of the outbox may be deleted, " +
				shorter + "7d or more, or a shorter retention.outbox",
		},
		{
			name: "shorter than a variable", file: "retention: {outbox: 1h, ledger: 2h}", environ: []string{"OUTBOX_RETENTION_DAYS=3"},
			want: "f.yml:1: retention.ledger: 2h is shorter than retention.outbox (3d, OUTBOX_RETENTION_DAYS): the log says which rows of the outbox may be deleted, " +
				shorter + "3d or more, or a shorter retention.outbox",
		},
		{
			name: "a variable that is shorter", environ: []string{"OUTBOX_RETENTION_LEDGER=1d"},
			want: "OUTBOX_RETENTION_LEDGER: retention.ledger: 1d is shorter than retention.outbox (7d by default): the log says which rows of the outbox may be deleted, " +
				shorter + "7d or more, or a shorter retention.outbox",
		},
		{
			name: "no time", file: noTime + "retention: {outbox: 7d}",
			want: `f.yml:2: retention.outbox: 7d needs the time of each row, and source.columns.created_at is ""; name the column, or write off`,
		},
		{
			name: "no time, by a variable", file: noTime, environ: []string{"OUTBOX_RETENTION_DAYS=7"},
			want: `OUTBOX_RETENTION_DAYS: retention.outbox: 7d needs the time of each row, and source.columns.created_at is ""; name the column, or write off`,
		},
		{
			name: "0 days", file: "retention: {ledger: 1d}", environ: []string{"OUTBOX_RETENTION_DAYS=0"},
			want: "OUTBOX_RETENTION_DAYS: retention.outbox: 0 means two things to people; set OUTBOX_RETENTION_OUTBOX=0s to delete rows as soon as they are settled, " +
				"or OUTBOX_RETENTION_OUTBOX=off to keep them",
		},
		{
			name: "negative days", environ: []string{"OUTBOX_RETENTION_DAYS=-1"},
			want: "OUTBOX_RETENTION_DAYS: retention.outbox: -1 is negative; write how many days rows are kept, or set OUTBOX_RETENTION_OUTBOX=off to keep them for ever",
		},
		{
			name: "too many days", environ: []string{"OUTBOX_RETENTION_DAYS=36501"},
			want: "OUTBOX_RETENTION_DAYS: retention.outbox: 36501 days are too many; write at most 36500, or set OUTBOX_RETENTION_OUTBOX=off to keep rows for ever",
		},
		{
			name: "far too many days", environ: []string{"OUTBOX_RETENTION_DAYS=99999999999999999999"},
			want: "OUTBOX_RETENTION_DAYS: retention.outbox: 99999999999999999999 days are too many; write at most 36500, or set OUTBOX_RETENTION_OUTBOX=off to keep rows for ever",
		},
		{
			name: "far too few days", environ: []string{"OUTBOX_RETENTION_DAYS=-99999999999999999999"},
			want: "OUTBOX_RETENTION_DAYS: retention.outbox: -99999999999999999999 is negative; write how many days rows are kept, or set OUTBOX_RETENTION_OUTBOX=off to keep them for ever",
		},
		{
			name: "no number of days", environ: []string{"OUTBOX_RETENTION_DAYS=7d"},
			want: `OUTBOX_RETENTION_DAYS: retention.outbox: "7d" is no number of days; write 7, or set OUTBOX_RETENTION_OUTBOX, which takes 7d, 36h or off`,
		},
		{
			name: "a variable that is no age", environ: []string{"OUTBOX_RETENTION_OUTBOX=7"},
			want: `OUTBOX_RETENTION_OUTBOX: retention.outbox: "7" is no age; write 7d, 1d12h or 90m, or off to keep rows for ever`,
		},
	} {
		_, _, err := Parse("f.yml", []byte(c.file), append(c.environ, "DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=stdout"), Options{})
		if diff := cmp.Diff(c.want, errorText(err)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}
