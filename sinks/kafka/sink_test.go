package kafka

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/pyairtable-compose/outbox-cdc/internal/testcert"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]Config{
		"brokers: missing; write host:port of some brokers":                 {},
		`compression: "brotli" is none of none, gzip, snappy, lz4 and zstd`: {Brokers: []string{"a:1"}, Compression: "brotli"},
		`timestamp: "now" is none of commit and created_at`:                 {Brokers: []string{"a:1"}, Timestamp: "now"},
		`sasl.mechanism: "gssapi" is none of plain, scram-sha-256 and scram-sha-512`: {
			Brokers: []string{"a:1"}, SASL: SASL{Mechanism: "gssapi", Username: "u", Password: "secret"},
		},
		"max_message_bytes: -1 is negative": {Brokers: []string{"a:1"}, MaxMessageBytes: -1},
	} {
		if _, err := New(c); err == nil || err.Error() != want {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	_, err := New(Config{Brokers: []string{"a:1", "b:port"}, Compression: "brotli", Timestamp: "now", MaxMessageBytes: -1, SASL: SASL{Mechanism: "x"}})
	var fields []string
	for line := range strings.Lines(fmt.Sprint(err)) {
		field, _, _ := strings.Cut(line, ": ")
		fields = append(fields, field)
	}
	if want := []string{"brokers[1]", "sasl.mechanism", "timestamp", "max_message_bytes", "compression"}; !slices.Equal(fields, want) {
		t.Errorf("all at once: %v", err)
	}
}

func TestSecretsArePrintedNowhere(t *testing.T) {
	t.Parallel()
	c := Config{Brokers: []string{"127.0.0.1:1"}, SASL: SASL{Mechanism: "plain", Username: "u", Password: "canary"}}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%v %+v %#v %s\n", c, c, c, c.SASL)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "sasl", c.SASL)
	if strings.Contains(out.String(), "canary") {
		t.Error(out.String())
	}
}

// TestLargerThanWeSend: is refused here, in its place.
func TestLargerThanWeSend(t *testing.T) {
	t.Parallel()
	brokers := startFake(t).ListenAddrs()
	s, _ := newSink(t, Config{Brokers: brokers, MaxMessageBytes: 10_000})
	topic := createTopic(t, brokers, 1, nil)
	batch := []sinks.Message{
		message(topic, "a", "1", 9_000), message(topic, "a", "2", 10_000), message(topic, "a", "3", 10), message(topic, "b", "4", 10),
	}
	errs := s.Deliver(t.Context(), batch)
	if len(errs) != 4 || errs[0] != nil || !errors.Is(errs[1], sinks.ErrPermanent) || !errors.Is(errs[2], sinks.ErrNotAttempted) || errs[3] != nil {
		t.Errorf("got %v", errs)
	}
	if got := ids(consume(t, brokers, topic)); strings.Join(got, " ") != "1 4" {
		t.Errorf("the topic holds %v", got)
	}
}

// TestWaves: more than fits into one batch of a partition, or into one request, goes out in several, in order.
func TestWaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	requests := w.observe()
	batch := make([]sinks.Message, 0, 300)
	for i := range cap(batch) {
		batch = append(batch, message(w.topic, fmt.Sprint("o-", i%7), fmt.Sprint(i), 100_000))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if errs := w.sink.Deliver(ctx, batch); errs != nil {
		t.Fatal(errs)
	}
	if n := requests.Hits(); n < 15 {
		t.Errorf("30 MB for two partitions went out in %d requests", n)
	}
	w.expectOnce(batch)
}

// TestBuffersShrink again when a large record has gone out.
func TestBuffersShrink(t *testing.T) {
	t.Parallel()
	brokers := startFake(t).ListenAddrs()
	for _, compression := range []string{"none", "gzip"} {
		s, _ := newSink(t, Config{Brokers: brokers, Compression: compression})
		topic := createTopic(t, brokers, 1, map[string]string{"max.message.bytes": "9000000"})
		large := message(topic, "a", "1", 0)
		large.Event.Payload = make([]byte, 8_000_000)
		_, _ = rand.Read(large.Event.Payload)
		if errs := s.Deliver(t.Context(), []sinks.Message{large}); errs != nil {
			t.Fatal(errs)
		}
		e := &s.free[0].encoder
		if n := cap(e.wave) + cap(e.plain) + e.packed.Cap(); n > 3*keptBytes {
			t.Errorf("compression %s: %d bytes of buffers are kept", compression, n)
		}
	}
}

func TestSASL(t *testing.T) {
	t.Parallel()
	for mechanism, method := range map[string]string{
		"plain": "PLAIN", "scram-sha-256": "SCRAM-SHA-256", "scram-sha-512": "SCRAM-SHA-512",
	} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			fake := startFake(t, kfake.EnableSASL(), kfake.Superuser(method, "outbox", "canary"), kfake.SeedTopics(1, "t"))
			for password, good := range map[string]bool{"canary": true, "canary-wrong": false} {
				s, _ := newSink(t, Config{
					Brokers: fake.ListenAddrs(), SASL: SASL{Mechanism: mechanism, Username: "outbox", Password: password},
				})
				if good {
					expectAccess(t, s)
				} else {
					expectNoAccess(t, s)
				}
			}
		})
	}
	t.Run("refused as brokers of Kafka refuse", func(t *testing.T) { // the fake would close the connection
		t.Parallel()
		fake := startFake(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "outbox", "canary"), kfake.SeedTopics(1, "t"))
		fake.ControlKey(kmsg.SASLAuthenticate.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			fake.KeepControl()
			answer := r.ResponseKind().(*kmsg.SASLAuthenticateResponse)
			answer.ErrorCode = kerr.SaslAuthenticationFailed.Code
			return answer, nil, true
		})
		s, _ := newSink(t, Config{Brokers: fake.ListenAddrs(), SASL: SASL{Mechanism: "plain", Username: "outbox", Password: "canary"}})
		if err := noAccess(t, s); !sinks.IsRefusedLogin(err) {
			t.Errorf("the login is refused, and the error does not say so: %v", err)
		}
	})
	t.Run("no right to the topic", func(t *testing.T) {
		t.Parallel()
		fake := startFake(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "admin", "admin"),
			kfake.User("PLAIN", "outbox", "canary", kfake.ACL{
				Resource: kmsg.ACLResourceTypeTopic, Name: "t", Pattern: kmsg.ACLResourcePatternTypeLiteral,
				Operation: kmsg.ACLOperationDescribe, Allow: true,
			}), kfake.SeedTopics(1, "t"))
		s, _ := newSink(t, Config{Brokers: fake.ListenAddrs(), SASL: SASL{Mechanism: "plain", Username: "outbox", Password: "canary"}})
		expectNoAccess(t, s)
	})
}

// expectAccess delivers to topic t.
func expectAccess(t *testing.T, s *Sink) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if errs := s.Deliver(ctx, []sinks.Message{message("t", "a", "1", 10)}); errs != nil {
		t.Errorf("want access, got %v", errs)
	}
}

// expectNoAccess is noAccess, and checks that the error does not say that the login was refused.
func expectNoAccess(t *testing.T, s *Sink) {
	t.Helper()
	if err := noAccess(t, s); sinks.IsRefusedLogin(err) {
		t.Errorf("no answer has refused the login, and the error says so: %v", err)
	}
}

// noAccess delivers to topic t, which is unavailable, soon. It returns the reason, which is no secret.
func noAccess(t *testing.T, s *Sink) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	errs := s.Deliver(ctx, []sinks.Message{message("t", "a", "1", 10)})
	switch {
	case !allOf(errs, 1, sinks.ErrUnavailable):
		t.Fatalf("want ErrUnavailable, got %v", errs)
	case strings.Contains(errs[0].Error(), "canary"):
		t.Errorf("tells the password: %v", errs[0])
	case ctx.Err() != nil:
		t.Error("lasted as long as its deadline")
	}
	return errs[0]
}

func TestTLS(t *testing.T) {
	t.Parallel()
	cert := testcert.SelfSigned(t)
	fake := startFake(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{cert.TLS}}), kfake.SeedTopics(1, "t"))
	for name, c := range map[string]struct {
		config *tls.Config
		good   bool
	}{
		"trusted":     {&tls.Config{RootCAs: cert.Roots}, true},
		"not trusted": {&tls.Config{RootCAs: x509.NewCertPool()}, false},
		"in clear":    {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := newSink(t, Config{Brokers: fake.ListenAddrs(), TLS: c.config})
			if c.good {
				expectAccess(t, s)
			} else {
				expectNoAccess(t, s)
			}
		})
	}
}

// TestNothingIsLeft of a sink that was closed, not even when a Deliver had to give up. It runs alone, as it counts
// goroutines.
func TestNothingIsLeft(t *testing.T) {
	fake := startFake(t, kfake.SeedTopics(2, "t"))
	before := goleak.IgnoreCurrent()
	s, err := New(Config{Brokers: fake.ListenAddrs()})
	if err != nil {
		t.Fatal(err)
	}
	n := &network{conns: make(map[*conn]struct{})}
	s.options = append(s.options, kgo.Dialer(n.dial))
	batch := messages("t", 50, 5)
	if errs := s.Deliver(t.Context(), batch); errs != nil {
		t.Fatal(errs)
	}
	for _, again := range []bool{false, true} { // with connections that are up, and with new ones
		back := n.hang()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		began := time.Now()
		errs := s.Deliver(ctx, batch)
		if again { // it asks where the topic is, and sends nothing
			errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, sinks.ErrNotAttempted) })
		}
		if len(errs) == 0 || !allOf(errs, len(errs), sinks.ErrUnavailable) {
			t.Errorf("want ErrUnavailable, got %v", errs)
		}
		if took := time.Since(began); took > 700*time.Millisecond {
			t.Errorf("took %v", took)
		}
		cancel()
		if again {
			defer back()
		} else {
			back()
			n.goAway()()
			s.away.clear(place{"t", 0})
			s.away.clear(place{"t", 1})
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, before)
}
