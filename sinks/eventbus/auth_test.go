package eventbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/internal/testcert"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
	"github.com/pyairtable-compose/outbox-cdc/sinks/format"
)

// expectAccess delivers to the stream.
func expectAccess(t *testing.T, c Config, subject string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if errs := newSink(t, c).Deliver(ctx, messages(subject, 1, 1)); errs != nil {
		t.Errorf("want access, got %v", errs)
	}
}

// expectRefusedLogin is noAccess, and checks that the error says that the login was refused.
func expectRefusedLogin(t *testing.T, c Config, subject string) (reason string) {
	t.Helper()
	err := noAccess(t, c, subject)
	if !sinks.IsRefusedLogin(err) {
		t.Errorf("the login is refused, and the error does not say so: %v", err)
	}
	return err.Error()
}

// expectNoAccess is noAccess, and checks that the error does not say that the login was refused.
func expectNoAccess(t *testing.T, c Config, subject string) (reason string) {
	t.Helper()
	err := noAccess(t, c, subject)
	if sinks.IsRefusedLogin(err) {
		t.Errorf("it was not the login, and the error says so: %v", err)
	}
	return err.Error()
}

// noAccess delivers to the stream, which is unavailable, soon. It returns the reason, which is no secret.
func noAccess(t *testing.T, c Config, subject string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	errs := newSink(t, c).Deliver(ctx, messages(subject, 1, 1))
	switch {
	case errs == nil || !errors.Is(errs[0], sinks.ErrUnavailable):
		t.Fatalf("want ErrUnavailable, got %v", errs)
	case ctx.Err() != nil:
		t.Error("lasted as long as its deadline")
	}
	if strings.Contains(errs[0].Error(), "canary") {
		t.Errorf("tells a secret: %v", errs[0])
	}
	return errs[0]
}

func TestPasswordAndToken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config        string
		admin, secret string // in the URL
	}{
		"password": {`authorization { users = [{user: outbox, password: "canary/1"}] }`, "outbox:canary%2F1", "outbox:canary-2"},
		"token":    {`authorization { token: "canary1" }`, "canary1", "canary2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startServer(t, servers.NATSOptions{Config: c.config})
			url := func(secret string) string { return "nats://" + secret + "@" + n.Addr() }
			stream := newStream(t, url(c.admin), jetstream.StreamConfig{})
			expectAccess(t, Config{URL: url(c.admin)}, stream.subject)
			for _, u := range []string{url(c.secret), n.URL()} {
				if reason := expectRefusedLogin(t, Config{URL: u}, stream.subject); !strings.Contains(reason, "Authorization") {
					t.Errorf("want the reason, got %s", reason)
				}
			}
		})
	}
}

// TestRights: a message that may not be published has its reason, and does not wait for the deadline; so has one whose
// acknowledgement may not be received.
func TestRights(t *testing.T) {
	t.Parallel()
	n := startServer(t, servers.NATSOptions{Config: `authorization { users = [
		{user: admin, password: a}
		{user: narrow, password: a, permissions: {publish: "outbox.event.*.allowed", subscribe: "_INBOX.>"}}
		{user: own, password: a, permissions: {publish: "outbox.>", subscribe: "acks.>"}}
	]}`})
	url := func(user string) string { return "nats://" + user + ":a@" + n.Addr() }
	stream := newStream(t, url("admin"), jetstream.StreamConfig{})
	if reason := expectNoAccess(t, Config{URL: url("narrow")}, stream.subject+".denied"); !strings.Contains(reason, "no right to publish") {
		t.Errorf("got %s", reason)
	}
	expectAccess(t, Config{URL: url("narrow")}, stream.subject+".allowed")
	if reason := expectNoAccess(t, Config{URL: url("own")}, stream.subject); !strings.Contains(reason, "inbox prefix") {
		t.Errorf("got %s", reason)
	}
	expectAccess(t, Config{URL: url("own"), InboxPrefix: "acks"}, stream.subject)
}

func seedFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// newKey returns the seed and the public half.
func newKey(t *testing.T, create func() (nkeys.KeyPair, error)) (key nkeys.KeyPair, seed []byte, public string) {
	t.Helper()
	key, err := create()
	if err != nil {
		t.Fatal(err)
	}
	if seed, err = key.Seed(); err != nil {
		t.Fatal(err)
	}
	if public, err = key.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return key, seed, public
}

func TestNKey(t *testing.T) {
	t.Parallel()
	_, seed, public := newKey(t, nkeys.CreateUser)
	_, other, _ := newKey(t, nkeys.CreateUser)
	n := startServer(t, servers.NATSOptions{Config: fmt.Sprintf("authorization { users = [{nkey: %s}] }", public)})
	file := seedFile(t, "user.nk", seed)
	option, err := nats.NkeyOptionFromSeed(file)
	if err != nil {
		t.Fatal(err)
	}
	stream := newStream(t, n.URL(), jetstream.StreamConfig{}, option)
	expectAccess(t, Config{URL: n.URL(), NKeySeedFile: file}, stream.subject)
	expectRefusedLogin(t, Config{URL: n.URL(), NKeySeedFile: seedFile(t, "other.nk", other)}, stream.subject)
}

func TestCredentialsFile(t *testing.T) {
	t.Parallel()
	operator, _, operatorPublic := newKey(t, nkeys.CreateOperator)
	account, _, accountPublic := newKey(t, nkeys.CreateAccount)
	_, _, systemPublic := newKey(t, nkeys.CreateAccount)
	_, userSeed, userPublic := newKey(t, nkeys.CreateUser)
	encode := func(c jwt.Claims, by nkeys.KeyPair) string {
		t.Helper()
		token, err := c.Encode(by)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	o := jwt.NewOperatorClaims(operatorPublic)
	o.SystemAccount = systemPublic
	a := jwt.NewAccountClaims(accountPublic)
	a.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: -1, MemoryStorage: -1, Streams: -1, Consumer: -1}
	n := startServer(t, servers.NATSOptions{Config: fmt.Sprintf(
		"operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }", encode(o, operator), systemPublic,
		accountPublic, encode(a, operator), systemPublic, encode(jwt.NewAccountClaims(systemPublic), operator))})
	creds, err := jwt.FormatUserConfig(encode(jwt.NewUserClaims(userPublic), account), userSeed)
	if err != nil {
		t.Fatal(err)
	}
	file := seedFile(t, "user.creds", creds)
	stream := newStream(t, n.URL(), jetstream.StreamConfig{}, nats.UserCredentials(file))
	expectAccess(t, Config{URL: n.URL(), CredentialsFile: file}, stream.subject)
	expectRefusedLogin(t, Config{URL: n.URL()}, stream.subject)
	expectNoAccess(t, Config{URL: n.URL(), CredentialsFile: seedFile(t, "bad.creds", []byte("canary"))}, stream.subject)
}

func TestTLS(t *testing.T) {
	t.Parallel()
	cert := testcert.SelfSigned(t)
	roots := cert.Roots
	n := startServer(t, servers.NATSOptions{Config: fmt.Sprintf("tls { cert_file: %q, key_file: %q }",
		seedFile(t, "cert.pem", cert.CertPEM), seedFile(t, "key.pem", cert.KeyPEM))})
	stream := newStream(t, n.URL(), jetstream.StreamConfig{}, nats.Secure(&tls.Config{RootCAs: roots}))
	url := "tls://" + n.Addr()
	expectAccess(t, Config{URL: url, TLS: &tls.Config{RootCAs: roots}}, stream.subject)
	expectAccess(t, Config{URL: n.URL(), TLS: &tls.Config{RootCAs: roots}}, stream.subject)
	expectNoAccess(t, Config{URL: url, TLS: &tls.Config{RootCAs: x509.NewCertPool()}}, stream.subject)
	expectNoAccess(t, Config{URL: url}, stream.subject)
	// A server without it is not talked to in clear.
	plain := startServer(t, servers.NATSOptions{})
	other := newStream(t, plain.URL(), jetstream.StreamConfig{})
	expectNoAccess(t, Config{URL: plain.URL(), TLS: &tls.Config{RootCAs: roots}}, other.subject)
	expectNoAccess(t, Config{URL: "tls://" + plain.Addr()}, other.subject)
}

func TestConfig(t *testing.T) {
	t.Parallel()
	ce := format.CloudEvents{Source: "/outbox/test"}
	good := seedFile(t, "good.nk", func() []byte { _, seed, _ := newKey(t, nkeys.CreateUser); return seed }())
	for name, c := range map[string]struct {
		config Config
		want   string // in the error; "": none
	}{
		"one":                 {Config{URL: "nats://user:canary@localhost:4222"}, ""},
		"several":             {Config{URL: "nats://a:4222, tls://token@b:4222,"}, ""},
		"none":                {Config{}, "url: missing"},
		"only commas":         {Config{URL: " ,"}, "url: missing"},
		"not a url":           {Config{URL: "nats://user:canary%@localhost"}, "url: server 1 cannot be read"},
		"control character":   {Config{URL: "nats://a,nats://user:canary\n@localhost"}, "url: server 2 cannot be read"},
		"no scheme":           {Config{URL: "localhost:4222"}, "url: server 1: its scheme"},
		"other scheme":        {Config{URL: "http://canary@localhost"}, "url: server 1: its scheme"},
		"no host":             {Config{URL: "nats://user:canary@"}, "has no host"},
		"no source":           {Config{URL: "nats://a", CloudEvents: format.CloudEvents{Source: "none of it"}}, "source: "},
		"two kinds of secret": {Config{URL: "nats://a", CredentialsFile: "a", NKeySeedFile: good}, "nkey_file: excludes credentials_file"},
		"nkey":                {Config{URL: "nats://a", NKeySeedFile: good}, ""},
		"no nkey file":        {Config{URL: "nats://a", NKeySeedFile: "nkey_file: nats: open /no/such/file"}, "nkey_file: nats: open /no/such/file"},
		"no seed in it":       {Config{URL: "nats://a", NKeySeedFile: seedFile(t, "bad.nk", []byte("canary"))}, "nkey_file: "},
		"everything":          {Config{URL: "localhost", InboxPrefix: "a b", NKeySeedFile: "/no/such/file", CloudEvents: format.CloudEvents{Source: "a b"}}, "scheme must be nats or tls\nsource: \"a b\" is no URI reference such as /outbox/shop/{aggregate_type}, the only field that it may have\ninbox_prefix: subject \"a b\" has a space, a control character, * or >\nnkey_file: nats: "},
		"inbox":               {Config{URL: "nats://a", InboxPrefix: "_INBOX.outbox"}, ""},
		"wild inbox":          {Config{URL: "nats://a", InboxPrefix: "acks.>"}, "inbox_prefix: "},
	} {
		if c.config.CloudEvents.Source == "" {
			c.config.CloudEvents = ce
		}
		s, err := New(c.config)
		switch {
		case err == nil && s.Close() != nil, (err == nil) != (c.want == ""):
			t.Errorf("%s: %v", name, err)
		case err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary")):
			t.Errorf("%s: want %q, got %v", name, c.want, err)
		}
		var log strings.Builder
		slog.New(slog.NewTextHandler(&log, nil)).Info("made", "config", c.config)
		for _, text := range []string{fmt.Sprint(c.config), fmt.Sprintf("%v %+v %#v %s", c.config, c.config, c.config, c.config), log.String()} {
			if strings.Contains(text, "canary") || strings.Contains(text, "token") {
				t.Errorf("%s: tells a secret: %s", name, text)
			}
		}
	}
}
