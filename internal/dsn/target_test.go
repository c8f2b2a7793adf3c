package dsn

import (
	"os"
	"os/user"
	"strings"
	"testing"
)

// The variables of libpq are those of the process, so this test is not parallel.
func TestTargetOf(t *testing.T) {
	for _, name := range []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"} {
		t.Setenv(name, "")
	}
	login, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	me := login.Username
	services := t.TempDir() + "/services"
	if err := os.WriteFile(services, []byte("[orders]\nhost=served\ndbname=shop\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGSERVICEFILE", services)
	for _, c := range []struct {
		name, text string
		environ    string // NAME=value, separated by spaces
		want       string // what the Target says, without the place at which the string stands
	}{
		{"a URL", "postgres://u:canary@h:5433/d?sslmode=disable&application_name=a", "PGHOST=no PGUSER=no", `database "d" on h:5433 as user "u"`},
		{"words", "host=h port=5433 user=u password=canary dbname=d", "PGHOST=no", `database "d" on h:5433 as user "u"`},
		{"quoted words", `host = 'h' user='u\'s' password='canary host=x' dbname='d d'`, "", `database "d d" on h:5432 as user "u's"`},
		{"the port by default", "postgres://u@h/d", "", `database "d" on h:5432 as user "u"`},
		{"several hosts", "postgres://u@a:1,b:2/d?sslmode=prefer", "", `database "d" on a:1,b:2 as user "u"`},
		{"a socket", "host=/run/pg user=u dbname=d port=5433", "", `database "d" on /run/pg/.s.PGSQL.5433 as user "u"`},
		{"IPv6", "postgres://u@[::1]/d", "", `database "d" on [::1]:5432 as user "u"`},
		{"a host in the query", "postgres:///d?host=h&user=u", "PGHOST=no", `database "d" on h:5432 as user "u"`},
		{"no user", "postgres://h/d", "", `database "d" on h:5432 as user "` + me + `"; no user: that of the operating system`},
		{"no database", "postgres://u@h", "", `database "u" on h:5432 as user "u"; no database: that of the user's name`},
		{
			"all of the environment", "sslmode=disable", "PGHOST=envhost PGPORT=5434 PGDATABASE=envdb PGUSER=envuser",
			`database "envdb" on envhost:5434 as user "envuser"; host from PGHOST; port from PGPORT; database from PGDATABASE; user from PGUSER`,
		},
		{"some of it", "postgres:///d", "PGHOST=envhost PGUSER=envuser", `database "d" on envhost:5432 as user "envuser"; host from PGHOST; user from PGUSER`},
		{
			"a service", "service=orders user=u", "PGPORT=5434",
			`database "shop" on served:5434 as user "u"; host from its service, PGHOST or the default; port from its service, PGPORT or the default; ` +
				`database from its service, PGDATABASE or the default`,
		},
		{
			"a service of the environment", "host=h port=1 user=u", "PGSERVICE=orders",
			`database "shop" on h:1 as user "u"; database from the service of PGSERVICE, PGDATABASE or the default`,
		},
		{"an @ that was not escaped", "postgres://u:can@ary@h/d", "", `database "***" on *** as user "u"`},
		{"a / that was not escaped", "postgres://u:1/canary@h/d", "PGUSER=envuser", `database "***" on *** as user "envuser"; user from PGUSER`},
		{"an escaped @ of the user", "postgres://u%40server:canary@h/d", "", `database "d" on h:5432 as user "u@server"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			for e := range strings.FieldsSeq(c.environ) {
				name, value, _ := strings.Cut(e, "=")
				t.Setenv(name, value)
			}
			got, err := TargetOf(c.text, "outbox.yaml:3")
			head, rest, more := strings.Cut(c.want, "; ")
			want := head + " (outbox.yaml:3"
			if more {
				want += "; " + rest
			}
			if want += ")"; err != nil || got.String() != want {
				t.Errorf("%v\n got %s\nwant %s", err, got, want)
			}
		})
	}
	if _, err := TargetOf("jdbc:postgresql:d", ""); err == nil {
		t.Error("a JDBC URL was accepted")
	}
	got, err := TargetOf("postgres://u@/d", "DATABASE_URL")
	if err != nil || !strings.HasPrefix(got.Configured, "DATABASE_URL; ") || !strings.HasSuffix(got.Configured, "no host: a local socket, or localhost") {
		t.Errorf("without a host: %+v, %v", got, err)
	}
}

// Connection strings that lead to the same hosts and ports have the same Hosts, however they are written.
func TestHosts(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres://u:canary@db:5432/d":                          "db:5432",
		"postgres://u@DB./other?sslmode=disable":                 "db:5432",
		"postgres://u@a:1,b:2/d":                                 "a:1,b:2",
		"host=b,a port=2,1 user=u":                               "a:1,b:2",
		"postgres://u@a,b:5433/d":                                "a:5432,b:5433",
		"host=a,b port=6000 user=u":                              "a:6000,b:6000",
		"host=a,a user=u":                                        "a:5432",
		"host=/run/postgresql/ port=5433 user=u":                 "/run/postgresql:5433",
		"postgres://u@%2Frun%2Fpostgresql:5433/d":                "/run/postgresql:5433",
		"postgres://u@[2001:DB8:0::1]:5432/d":                    "[2001:db8::1]:5432",
		"postgres://u@127.0.0.1/d":                               "localhost:5432",
		"postgres://u@[::1]/d":                                   "localhost:5432",
		"postgres://u@localhost/d":                               "localhost:5432",
		"postgres://u:can@ary@h/d":                               "",
		"postgres://u:canary@db/d?schema=canary":                 "",
		"postgres://u@a:1,b:2/d?target_session_attrs=read-write": "a:1,b:2",
	} {
		if got := Hosts(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// What a connection string leaves out comes from the environment, so this test is not parallel.
func TestHostsOfTheEnvironment(t *testing.T) {
	services := t.TempDir() + "/services"
	if err := os.WriteFile(services, []byte("[orders]\nhost=served\nport=7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGSERVICEFILE", services)
	t.Setenv("PGHOST", "B,a")
	t.Setenv("PGPORT", "5434")
	for text, want := range map[string]string{
		"user=u": "a:5434,b:5434", "postgres:///d": "a:5434,b:5434", "host=h user=u": "h:5434", "service=orders user=u": "served:7",
	} {
		if got := Hosts(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
