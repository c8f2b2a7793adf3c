package servers

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// natsSession speaks the protocol by hand: this package is no client of NATS.
type natsSession struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func openNATS(t *testing.T, addr string) *natsSession {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s := &natsSession{t: t, conn: conn, in: bufio.NewReader(conn)}
	s.write("CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB inbox 1\r\n")
	return s
}

func (s *natsSession) write(text string) {
	s.t.Helper()
	if _, err := s.conn.Write([]byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

// request returns the body of the answer, whatever it says.
func (s *natsSession) request(subject, body string) string {
	s.t.Helper()
	if err := s.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	s.write(fmt.Sprintf("PUB %s inbox %d\r\n%s\r\n", subject, len(body), body))
	for {
		line, err := s.in.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(line, "MSG inbox"):
			answer, err := s.in.ReadString('\n')
			if err != nil {
				s.t.Fatal(err)
			}
			return answer
		case strings.HasPrefix(line, "PING"):
			s.write("PONG\r\n")
		}
	}
}

func TestNATSKeepsWhatItAccepted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), natsBuildTimeout)
	defer cancel()
	n, err := StartNATS(ctx, NATSOptions{Config: "max_payload: 2MB"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("NATS %s at %s", n.Version(), n.URL())
	s := openNATS(t, n.Addr())
	if answer := s.request("$JS.API.STREAM.CREATE.s", `{"name":"s","subjects":["t"],"storage":"file"}`); strings.Contains(answer, "error") {
		t.Fatal(answer)
	}
	if answer := s.request("t", "one"); !strings.Contains(answer, `"seq":1`) {
		t.Fatal(answer)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if answer := openNATS(t, n.Addr()).request("t", "two"); !strings.Contains(answer, `"seq":2`) {
		t.Errorf("after kill -9 the first message is gone: %s", answer)
	}
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	// The signal takes a moment to stop all threads of the process: an answer may still come, but not for long.
	for stopping := time.Now(); ; {
		silent, cancelSilent := context.WithTimeout(ctx, 200*time.Millisecond)
		err := n.ask(silent)
		cancelSilent()
		if err != nil {
			break
		}
		if time.Since(stopping) > 10*time.Second {
			t.Fatal("a paused server answers")
		}
	}
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(ctx); err != nil {
		t.Error(err)
	}
}
