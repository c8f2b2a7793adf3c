package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// encrypted is a destination that speaks TLS to clients with the right certificate, and asks for a password besides. It
// is looked at through a plain port where it has one.
type encrypted struct {
	*world
	server, client         certificate
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
			e := &encrypted{world: w, password: "p: {ass}"}
			e.server, e.client = e.certificate("server"), e.certificate("client")
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
				{map[string]any{"enabled": true, "ca_file": e.server.cert}, "tls"}, // it wants ours; who is told so, and who just hung up on, differs
				{map[string]any{"enabled": true, "ca_file": e.server.cert, "cert_file": e.client.cert, "key_file": e.client.key}, ""},
			} {
				sink["tls"] = stage.tls
				w.writeConfig(c)
				c.start()
				if stage.cause == "" {
					c.ready("leader")
					w.verify(expectation{})
				} else {
					c.degraded("sink:"+typ, "unavailable", stage.cause)
					if n, accepted := w.delivered(), len(w.received(typ)); n+accepted > 0 {
						t.Errorf("%s: %d are delivered, the server has %d", stage.cause, n, accepted)
					}
				}
				c.term()
			}
		})
	}
}

// certificate is one for this machine, signed by itself.
type certificate struct {
	tls             tls.Certificate
	certPEM, keyPEM []byte
	cert, key       string // files of these
}

func (e *encrypted) certificate(name string) certificate {
	e.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		e.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, // Java wants a subject
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		e.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		e.t.Fatal(err)
	}
	c := certificate{
		tls:     tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}
	c.cert, c.key = e.file(name+".pem", c.certPEM), e.file(name+".key", c.keyPEM)
	return c
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
		"tls-port": fmt.Sprint(port), "tls-cert-file": e.server.cert, "tls-key-file": e.server.key, "tls-ca-cert-file": e.client.cert,
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
	`, e.server.cert, e.server.key, e.client.cert)})
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
	clients.AppendCertsFromPEM(e.client.certPEM)
	server := httptest.NewUnstartedServer(e.hook.server.Config.Handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{e.server.tls}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	e.t.Cleanup(server.Close)
	return map[string]any{
		"url": server.URL, "allow_hosts": []string{"127.0.0.1"}, "body": "cloudevents",
		"secret": "${file:" + e.file("secret", []byte(hookSecret)) + "}",
	}
}

func (e *encrypted) serveKafka() map[string]any {
	line := func(text []byte) string { return strings.ReplaceAll(string(text), "\n", `\n`) }
	settings := map[string]string{
		"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:SASL_SSL",
	}
	for name, value := range map[string]string{
		"ssl.keystore.type": "PEM", "ssl.keystore.certificate.chain": line(e.server.certPEM), "ssl.keystore.key": line(e.server.keyPEM),
		"ssl.truststore.type": "PEM", "ssl.truststore.certificates": line(e.client.certPEM), "ssl.client.auth": "required",
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
