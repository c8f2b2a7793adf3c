package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/internal/testcert"
)

// encrypted is a destination that speaks TLS to clients with the right certificate, and asks for a password besides. It
// is looked at through a plain port where it has one.
type encrypted struct {
	*world
	server, client         testcert.Certificate
	serverCert, serverKey  string // files
	clientCert, clientKey  string
	password, passwordFile string
}

// TLS as configured: certificates are verified by default, so a server that cannot be verified gets nothing, and says why
// in /readyz; likewise one that misses our certificate. With the right files everything is delivered.
func TestTLS(t *testing.T) {
	t.Parallel()
	for typ, serve := range map[string]func(*encrypted) map[string]any{
		"redis_stream": (*encrypted).serveRedis, "event_bus": (*encrypted).serveNATS, "webhook": (*encrypted).serveHook, "kafka": (*encrypted).serveKafka,
	} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{sinks: []string{}, bare: true})
			e := &encrypted{world: w, server: testcert.SelfSigned(t), client: testcert.SelfSigned(t), password: "p: {ass}"}
			e.serverCert, e.serverKey = e.file("server.pem", e.server.CertPEM), e.file("server.key", e.server.KeyPEM)
			e.clientCert, e.clientKey = e.file("client.pem", e.client.CertPEM), e.file("client.key", e.client.KeyPEM)
			e.passwordFile = "${file:" + e.file("password", []byte(e.password+"\n")) + "}"
			sink := map[string]any{"name": typ, "type": typ, "topic": w.topics.prefix + ".{aggregate_type}"}
			maps.Copy(sink, serve(e))
			w.sinks = []map[string]any{sink}
			w.init()
			w.insert(20)

			c := w.connector()
			for _, stage := range []struct {
				tls   map[string]any
				cause string // of being away; none: it delivers
			}{
				{map[string]any{"enabled": true}, "certificate signed by unknown authority"},
				{map[string]any{"enabled": true, "ca_file": e.serverCert}, "tls"}, // it wants ours; who is told so, and who just hung up on, differs
				{map[string]any{"enabled": true, "ca_file": e.serverCert, "cert_file": e.clientCert, "key_file": e.clientKey}, ""},
			} {
				sink["tls"] = stage.tls
				w.writeConfig(c)
				c.start()
				if stage.cause == "" {
					c.ready("leader")
					w.verify(expectation{})
				} else {
					c.red("sink:"+typ, "unavailable", stage.cause)
					if n, accepted := w.delivered(), len(w.received(typ)); n+accepted > 0 {
						t.Errorf("%s: %d are delivered, the server has %d", stage.cause, n, accepted)
					}
				}
				c.term()
			}
		})
	}
}

func (e *encrypted) file(name string, content []byte) string {
	e.t.Helper()
	path := filepath.Join(e.t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		e.t.Fatal(err)
	}
	return path
}

func (e *encrypted) serveRedis() map[string]any {
	port, err := servers.FreePort()
	if err != nil {
		e.t.Fatal(err)
	}
	e.redis, err = servers.StartRedis(context.Background(), servers.RedisOptions{Settings: map[string]string{
		"tls-port": fmt.Sprint(port), "tls-cert-file": e.serverCert, "tls-key-file": e.serverKey, "tls-ca-cert-file": e.clientCert,
		"user": `outbox on ">` + e.password + `" ~* +multi +exec +xadd`,
	}})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { closes(e.t, e.redis) })
	return map[string]any{"url": fmt.Sprint("rediss://127.0.0.1:", port), "username": "outbox", "password": e.passwordFile}
}

func (e *encrypted) serveNATS() map[string]any {
	var err error
	e.nats, err = servers.StartNATS(context.Background(), servers.NATSOptions{Config: fmt.Sprintf(`
		tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }
		allow_non_tls: true
		authorization { users: [{user: outbox, password: secret}, {user: test, password: x}] }
		no_auth_user: test
	`, e.serverCert, e.serverKey, e.clientCert)})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { closes(e.t, e.nats) })
	e.createStream()
	return map[string]any{"url": "tls://outbox:${file:" + e.file("nats", []byte("secret")) + "}@" + e.nats.Addr()}
}

func (e *encrypted) serveHook() map[string]any {
	e.hook = newHook(e.t, e.topics)
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(e.client.CertPEM)
	server := httptest.NewUnstartedServer(e.hook.server.Config.Handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{e.server.TLS}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	e.t.Cleanup(server.Close)
	return map[string]any{
		"url": server.URL, "allow_hosts": []string{"127.0.0.1"}, "body": "cloudevents",
		"secret": "${file:" + e.file("secret", []byte(hookSecret)) + "}",
	}
}

func (e *encrypted) serveKafka() map[string]any {
	pem := func(text []byte) string { return strings.ReplaceAll(string(text), "\n", `\n`) }
	settings := map[string]string{
		"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:SASL_SSL",
	}
	for name, value := range map[string]string{
		"ssl.keystore.type": "PEM", "ssl.keystore.certificate.chain": pem(e.server.CertPEM), "ssl.keystore.key": pem(e.server.KeyPEM),
		"ssl.truststore.type": "PEM", "ssl.truststore.certificates": pem(e.client.CertPEM), "ssl.client.auth": "required",
		"sasl.enabled.mechanisms": "PLAIN",
		"plain.sasl.jaas.config":  `org.apache.kafka.common.security.plain.PlainLoginModule required user_outbox="` + e.password + `";`,
	} {
		settings["listener.name.proxied."+name] = value
	}
	k, err := servers.StartKafka(context.Background(), servers.KafkaOptions{Proxy: true, Settings: settings})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { closes(e.t, k) })
	e.kafka = k
	e.createTopics()
	e.log = newKafkaLog(e.t, k.Brokers(), e.topics.names())
	return map[string]any{
		"brokers": []string{k.Proxy().Addr()},
		"sasl":    map[string]any{"mechanism": "plain", "username": "outbox", "password": e.passwordFile},
	}
}
