package webhook

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// authority signs certificates for 127.0.0.1.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = a.sign(template, template, nil)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parentKey == nil {
		parentKey = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) certificate() tls.Certificate {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// serveTLS starts rec with a certificate of a new authority, and returns what a client needs. If it is given an authority for
// clients, rec demands certificates of clients.
func serveTLS(t testing.TB, rec *receiver, clients *authority) *tls.Config {
	t.Helper()
	a := newAuthority(t)
	rec.TLS = &tls.Config{Certificates: []tls.Certificate{a.certificate()}}
	rec.Config.ErrorLog = log.New(io.Discard, "", 0)
	if clients != nil {
		rec.TLS.ClientAuth, rec.TLS.ClientCAs = tls.RequireAndVerifyClientCert, clients.pool
	}
	rec.EnableHTTP2 = true // which the sink does not ask for
	rec.StartTLS()
	return &tls.Config{RootCAs: a.pool}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	clients, strangers := newAuthority(t), newAuthority(t)
	rec := newReceiver(nil)
	trusting := serveTLS(t, rec, clients)
	t.Cleanup(rec.Close)
	with := func(certificates ...tls.Certificate) *tls.Config {
		c := trusting.Clone()
		c.Certificates = certificates
		return c
	}
	for name, c := range map[string]struct {
		tls  *tls.Config
		want string // of the error; none: accepted
	}{
		"both know each other": {tls: with(clients.certificate())},
		"the system's roots":   {tls: nil, want: "certificate signed by unknown authority"},
		"another authority":    {tls: &tls.Config{RootCAs: strangers.pool}, want: "certificate signed by unknown authority"},
		"no certificate":       {tls: with(), want: "certificate required"},
		"a stranger's":         {tls: with(strangers.certificate()), want: "TLS: "},
		"another name":         {tls: &tls.Config{RootCAs: trusting.RootCAs, ServerName: "other", Certificates: with(clients.certificate()).Certificates}, want: "wanted to match other"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSink(t, Config{URL: rec.URL, TLS: c.tls})
			batch := batchOf("a/" + strings.ReplaceAll(name, " ", "-"))
			errs := deliver(t, s, batch)
			// With TLS 1.3 a client is refused after the handshake. If it was writing, its own system may drop the alert.
			for range 20 {
				if len(errs) != 1 || !errors.Is(errs[0], errLost) {
					break
				}
				errs = deliver(t, s, batch)
			}
			switch {
			case c.want == "" && errs != nil:
				t.Error(errs)
			case c.want != "" && (len(errs) != 1 || !errors.Is(errs[0], sinks.ErrUnavailable) || !strings.Contains(errs[0].Error(), c.want)):
				t.Errorf("want ErrUnavailable with %q, got %v", c.want, errs)
			}
			if c.tls != nil && c.tls.NextProtos != nil {
				t.Error("the caller's configuration was changed")
			}
		})
	}
	t.Cleanup(func() {
		if got := rec.ids(); got != "a/both-know-each-other" {
			t.Errorf("received %q", got)
		}
	})
}

// TestNoTLSThere: a receiver that answers without TLS counts as away, and its answer is not quoted.
func TestNoTLSThere(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, nil)
	s := newSink(t, Config{URL: strings.Replace(rec.URL, "http:", "https:", 1)})
	errs := deliver(t, s, batchOf("a/1"))
	if len(errs) != 1 || !errors.Is(errs[0], sinks.ErrUnavailable) {
		t.Errorf("got %v", errs)
	}
}

// https:// to a port that speaks HTTP.
func TestTLSToPlainPort(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, nil)
	s := newSink(t, Config{URL: "https" + strings.TrimPrefix(rec.URL, "http"), AllowHosts: []string{"127.0.0.1"}})
	errs := deliver(t, s, batchOf("a/1"))
	if len(errs) != 1 || !errors.Is(errs[0], sinks.ErrUnavailable) || !strings.Contains(errs[0].Error(), "not with TLS; correct the port") {
		t.Errorf("got %v", errs)
	}
}
