package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// expectCheck compares what Check says of the destination; "" is nothing.
func expectCheck(t testing.TB, s *Sink, want string, topics ...string) []sinks.TopicCheck {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found, err := s.Check(ctx, topics)
	switch {
	case want == "" && err != nil:
		t.Errorf("the receiver is there, and Check says: %v", err)
	case want != "" && (!errors.Is(err, sinks.ErrUnavailable) || !strings.Contains(err.Error(), want)):
		t.Errorf("want ErrUnavailable with %q, got %v", want, err)
	case err != nil && strings.Contains(err.Error(), canary):
		t.Errorf("tells a secret: %v", err)
	}
	return found
}

// TestCheckSendsNoRequest: what the receiver would answer is not known, so a check does not depend on it.
func TestCheckSendsNoRequest(t *testing.T) {
	t.Parallel()
	rec := startReceiver(t, func(w *answer, _ *http.Request, _ got) { w.WriteHeader(http.StatusNotFound) })
	s := newSink(t, Config{URL: rec.URL + "/" + canary, Topics: sinks.SeveralTopics})
	found := expectCheck(t, s, "", "orders", rec.URL+"/orders", "https://"+canary+".example/", rec.URL+"/a/../b")
	for i, good := range []bool{true, true, false, false} {
		switch f := found[i]; {
		case (f.Err == nil) != good:
			t.Errorf("%s: %v", f.Topic, f.Err)
		case f.Err != nil && strings.Contains(f.Err.Error(), canary):
			t.Errorf("tells a URL: %v", f.Err)
		}
	}
	if n := len(rec.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestCheckFindsTheReceiverAway(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSink(t, Config{URL: "http://" + listener.Addr().String() + "/" + canary})
	expectCheck(t, s, "")
	listener.Close()
	expectCheck(t, s, "refused")
}

// TestCheckAsksTheGuard: a check connects to no address to which Deliver would not.
func TestCheckAsksTheGuard(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	s, err := New(Config{URL: "https://localhost:" + port, TLS: &tls.Config{MinVersion: tls.VersionTLS12}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	expectCheck(t, s, "internal address")
	if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if conn, err := listener.Accept(); err == nil {
		conn.Close()
		t.Error("Check has connected to an internal address")
	}
}

// TestCheckTLS finds a certificate that is not trusted, a server without TLS, and one that wants another certificate of ours.
func TestCheckTLS(t *testing.T) {
	t.Parallel()
	clients := newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			rec := newReceiver(nil)
			t.Cleanup(rec.Close)
			config := serveTLS(t, rec, clients)
			config.MaxVersion = version
			expectCheck(t, newSink(t, Config{URL: rec.URL, TLS: &tls.Config{MinVersion: tls.VersionTLS12}}), "certificate")
			expectCheck(t, newSink(t, Config{URL: rec.URL, TLS: config}), "remote error")
			config = config.Clone()
			config.Certificates = []tls.Certificate{clients.certificate()}
			expectCheck(t, newSink(t, Config{URL: rec.URL, TLS: config}), "")
			if n := len(rec.requests()); n != 0 {
				t.Errorf("%d requests", n)
			}
		})
	}
	plain := startReceiver(t, nil)
	expectCheck(t, newSink(t, Config{URL: strings.Replace(plain.URL, "http:", "https:", 1), AllowHosts: []string{"127.0.0.1"}}), "not with TLS")
}
