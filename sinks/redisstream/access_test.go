package redisstream

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/internal/testcert"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]Config{
		"url: missing; write redis://host:6379, or addresses\n":                   {Password: "canary"},
		"url: missing; write redis://host:6379, or addresses\naddresses: missing": {Master: "m"},
		"addresses: missing; write those of the Sentinels":                        {URL: "redis://a", Master: "m"},
		"url: has the option \"x\", and only db and skip_verify are known\nmax_len: -1 is negative\nmin_id_age: -1ns is negative\nmax_message_bytes: -2 is": {URL: "redis://a?x=y", MaxLen: -1, MinIDAge: -1, MaxMessageBytes: -2},
		"min_id_age: excludes max_len":                     {URL: "redis://a", MaxLen: 1, MinIDAge: time.Hour},
		"url: is no URL of Redis; write redis://host:6379": {URL: "redis://u:canary/x@a:port"},
		"url: is no URL of Redis; write redis://host:6379 or rediss://host:6379, other characters than letters and digits of a password as %XX": {URL: "http://u:canary@a"},
		`url: has the option "pool_size"`:                          {URL: "redis://a?pool_size=3"},
		"url: has a database that is no number":                    {URL: "redis://u:canary@a/b"},
		"url: names database 1, and a cluster has database 0 only": {URL: "redis://a/1", Addresses: []string{"b:1"}},
	} {
		_, err := New(c)
		if err == nil || !strings.HasPrefix(err.Error()+"\n", want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestSecretsArePrintedNowhere(t *testing.T) {
	t.Parallel()
	c := Config{URL: "redis://u:canary@host:1/2", Addresses: []string{"other:1"}, Password: "canary"}
	if text := fmt.Sprintf("%v %+v %#v %s", c, c, c, c); strings.Contains(text, "canary") || !strings.Contains(text, "redis at host:1, other:1") {
		t.Error(text)
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{"user": "outbox on >p%40ss:w/rd ~* +@all"}})
	s := newSink(t, Config{URL: "redis://outbox:p%2540ss%3Aw%2Frd@" + server.Addr() + "/3", ClientName: "outbox-cdc"})
	if errs := deliver(t, s, message("s", "a", "1", 10)); errs != nil {
		t.Fatal(errs)
	}
	list, err := newClient(t, server.Addr()).ClientList(t.Context()).Result()
	if err != nil || !strings.Contains(list, "name=outbox-cdc") || !strings.Contains(list, "user=outbox") || !strings.Contains(list, "db=3") {
		t.Errorf("%v: %s", err, list)
	}
}

// TestRights: without access it is unavailable, nothing is added, and the reason is no secret.
func TestRights(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{"user": "default on >canary-admin ~* +@all"}})
	admin := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: "canary-admin", Protocol: 2})
	defer admin.Close()
	for name, c := range map[string]struct {
		rules    string
		password string
		want     string // "" is access
	}{
		"enough":          {rules: "~outbox.* +multi +exec +xadd"},
		"wrong password":  {rules: "~outbox.* +multi +exec +xadd", password: "canary-wrong", want: "WRONGPASS"},
		"off":             {rules: "~outbox.* +multi +exec +xadd off", want: "WRONGPASS"},
		"no MULTI":        {rules: "~outbox.* +exec +xadd", want: "the user needs +multi +exec +xadd"},
		"no EXEC":         {rules: "~outbox.* +multi +xadd", want: "the user needs +multi +exec +xadd"},
		"no XADD":         {rules: "~outbox.* +multi +exec", want: "the user needs +multi +exec +xadd"},
		"not this stream": {rules: "~other.* +multi +exec +xadd", want: "the key pattern of the streams"},
	} {
		user := strings.ReplaceAll(name, " ", "-")
		arguments := []any{"ACL", "SETUSER", user, "on", ">canary"}
		for rule := range strings.FieldsSeq(c.rules) {
			arguments = append(arguments, rule)
		}
		if err := admin.Do(t.Context(), arguments...).Err(); err != nil {
			t.Fatal(err)
		}
		password := c.password
		if password == "" {
			password = "canary"
		}
		s, stream := newSink(t, Config{URL: server.URL(), Username: user, Password: password, ClientName: "outbox-cdc"}), newStream()
		for range 2 {
			errs := deliver(t, s, messages(stream, 10, 3)...)
			if c.want == "" {
				if errs != nil {
					t.Errorf("%s: %v", name, errs)
				}
				continue
			}
			expectAway(t, errs, 10, c.want)
			if strings.Contains(errs[0].Error(), "canary") {
				t.Errorf("%s: tells the password: %v", name, errs[0])
			}
			if refused := sinks.IsRefusedLogin(errs[0]); refused != (c.want == "WRONGPASS") {
				t.Errorf("%s: marked as a refused login: %t: %v", name, refused, errs[0])
			}
			if n, err := admin.Exists(t.Context(), stream).Result(); err != nil || n != 0 {
				t.Errorf("%s: something was added (%v)", name, err)
			}
		}
	}
	t.Run("cluster", func(t *testing.T) {
		server := startRedis(t, servers.RedisOptions{Cluster: true, Settings: map[string]string{
			"user": "outbox on >canary ~outbox.* +multi +exec +xadd +cluster +asking",
		}})
		s := newSink(t, Config{Addresses: []string{server.Addr()}, Username: "outbox", Password: "canary", ClientName: "outbox-cdc"})
		if errs := deliver(t, s, messages("outbox.s", 10, 3)...); errs != nil {
			t.Error(errs)
		}
	})
	t.Run("no password", func(t *testing.T) {
		errs := deliver(t, newSink(t, Config{URL: server.URL()}), messages("outbox.s", 10, 3)...)
		expectAway(t, errs, 10, "NOAUTH")
		if !sinks.IsRefusedLogin(errs[0]) {
			t.Errorf("the login is refused, and the error does not say so: %v", errs[0])
		}
	})
}

// TestRightToMultiIsLost under a link that is up: what was added one by one is known, and nothing more is.
func TestRightToMultiIsLost(t *testing.T) {
	t.Parallel()
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{"user": "outbox on >canary ~* +multi +exec +xadd"}})
	client, stream := newClient(t, server.Addr()), newStream()
	s := newSink(t, Config{URL: server.URL(), Username: "outbox", Password: "canary"})
	all := messages(stream, 60, 7)
	if errs := deliver(t, s, all[:20]...); errs != nil {
		t.Fatal(errs)
	}
	if err := client.Do(t.Context(), "ACL", "SETUSER", "outbox", "-multi").Err(); err != nil {
		t.Fatal(err)
	}
	if errs := deliver(t, s, all[20:40]...); errs != nil {
		t.Errorf("they were added: %v", errs)
	}
	expectAway(t, deliver(t, s, all[40:]...), 20, "NOPERM")
	expectOnce(t, client, stream, all[:40])
	if err := client.Do(t.Context(), "ACL", "SETUSER", "outbox", "+multi").Err(); err != nil {
		t.Fatal(err)
	}
	if errs := deliver(t, s, all[40:]...); errs != nil {
		t.Error(errs)
	}
	expectOnce(t, client, stream, all)
}

func TestTLS(t *testing.T) {
	t.Parallel()
	cert := testcert.SelfSigned(t)
	roots := cert.Roots
	certificate := filepath.Join(t.TempDir(), "server.pem")
	if err := os.WriteFile(certificate, slices.Concat(cert.CertPEM, cert.KeyPEM), 0o600); err != nil {
		t.Fatal(err)
	}
	port, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	server := startRedis(t, servers.RedisOptions{Settings: map[string]string{
		"tls-port": fmt.Sprint(port), "tls-cert-file": certificate, "tls-key-file": certificate, "tls-ca-cert-file": certificate,
		"tls-auth-clients": "no",
	}})
	address := fmt.Sprint("127.0.0.1:", port)
	for name, c := range map[string]struct {
		config Config
		good   bool
	}{
		"trusted":                 {Config{URL: "redis://" + address, TLS: &tls.Config{RootCAs: roots}}, true},
		"trusted, by URL and TLS": {Config{URL: "rediss://" + address, TLS: &tls.Config{RootCAs: roots}}, true},
		"trusted, another name":   {Config{URL: "rediss://" + address, TLS: &tls.Config{RootCAs: roots, ServerName: "redis.test"}}, false},
		"not trusted":             {Config{URL: "rediss://" + address}, false},
		"not verified":            {Config{URL: "rediss://" + address + "?skip_verify=true"}, true},
		"in clear":                {Config{URL: "redis://" + address}, false},
		"TLS to a clear port":     {Config{URL: "rediss://" + server.Addr()}, false},
	} {
		errs := deliver(t, newSink(t, c.config), message("s", "a", "1", 10))
		if c.good && errs != nil {
			t.Errorf("%s: %v", name, errs)
		}
		if !c.good {
			expectAway(t, errs, 1, "")
		}
	}
}
