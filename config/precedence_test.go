package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// DATABASE_URL stands in for a source.dsn that the file does not have. Where it has one, and means another database, a warning
// names both places, and neither value.
func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	const file, variable = "postgres://u:canary1@localhost/file", "postgres://u:canary2@localhost/variable"
	const ignored = "f.yml:2: source.dsn is used, and the variable DATABASE_URL, which has another value, is not; " +
		"unset DATABASE_URL, or write dsn: ${DATABASE_URL} to use it"
	environ := []string{"DATABASE_URL=" + variable, "FILE=" + file, "SAME=" + variable}
	for _, c := range []struct {
		name, dsn   string // what the file has behind "dsn:"
		environ     []string
		want, place string
		warning     string
	}{
		{"a literal", file, environ, file, "f.yml:2", ignored},
		{"a literal alone", file, nil, file, "f.yml:2", ""},
		{"a literal, and an empty variable", file, []string{"DATABASE_URL="}, file, "f.yml:2", ""},
		{"the same literal", variable, environ, variable, "f.yml:2", ""},
		{"the same, with what stands around it by accident", variable, []string{"DATABASE_URL=\"" + variable + "\"\n"}, variable, "f.yml:2", ""},
		{"the variable", "${DATABASE_URL}", environ, variable, "f.yml:2", ""},
		{"the variable with a default", "${DATABASE_URL:-" + file + "}", environ, variable, "f.yml:2", ""},
		{"the default of the variable", "${DATABASE_URL:-" + file + "}", nil, file, "f.yml:2", ""},
		{"the variable within a value", "${DATABASE_URL}_test", environ, variable + "_test", "f.yml:2", ""},
		{"another variable", "${FILE}", environ, file, "f.yml:2", ignored},
		{"another variable of the same value", "${SAME}", environ, variable, "f.yml:2", ""},
		{"another variable that is empty", "${NONE:-}", environ, variable, "DATABASE_URL", ""},
		{"no value", "", environ, variable, "DATABASE_URL", ""},
	} {
		got, warnings, err := Parse("f.yml", []byte("source:\n  dsn: "+c.dsn+"\nsinks: [{type: stdout}]\n"), c.environ, Options{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if string(got.Source.DSN) != c.want || got.Source.ReplicationDSN != got.Source.DSN {
			t.Errorf("%s: source.dsn is %q, want %q", c.name, string(got.Source.DSN), c.want)
		}
		if got.Source.DSNPlace != c.place || got.Source.ReplicationDSNPlace != c.place {
			t.Errorf("%s: it was written at %q, want %q", c.name, got.Source.DSNPlace, c.place)
		}
		if all := strings.Join(warnings, "\n"); all != c.warning {
			t.Errorf("%s: warnings %q, want %q", c.name, all, c.warning)
		}
	}
}

// The HTTP server can be switched off in the file and by the variable. An empty variable counts as none, as every other one.
func TestListenOff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ file, variable, want string }{
		{"", "", "127.0.0.1:9640"},
		{"", "off", ""},
		{"", "OFF\n", ""},
		{"127.0.0.1:1", "off", ""},
		{"127.0.0.1:1", "", "127.0.0.1:1"},
		{"off", "", ""},
		{`"off"`, "", ""},
		{`""`, "", ""},
		{"off", ":1", ":1"},
	} {
		got, _, err := Parse("f.yml", []byte("http:\n  listen: "+c.file+"\n"),
			[]string{"DATABASE_URL=postgres://localhost/shop", "OUTBOX_PUBLISHER_TYPE=stdout", "OUTBOX_LISTEN=" + c.variable}, Options{})
		if err != nil || got.HTTP.Listen != c.want {
			t.Errorf("listen: %s, OUTBOX_LISTEN=%q: %q, %v, want %q", c.file, c.variable, got.HTTP.Listen, err, c.want)
		}
	}
	effective, err := Effective(Config{})
	if err != nil || !strings.Contains(effective, "listen: \"off\"\n") {
		t.Errorf("the effective configuration does not say that the server is off: %v\n%s", err, cmp.Diff("", effective))
	}
}
