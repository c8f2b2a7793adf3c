package servers

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo answers with what it was sent, and after the end of that with a last word.
func echo(t *testing.T) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := io.Copy(conn, conn); err == nil {
					_, _ = io.WriteString(conn, "bye") // the client may have gone
				}
			}()
		}
	}()
	return listener.Addr().String()
}

func echoProxy(t *testing.T) *Proxy {
	t.Helper()
	p, err := NewProxy(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

func setReadTimeout(t *testing.T, conn net.Conn, d time.Duration) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
}

func wantReply(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	setReadTimeout(t, conn, 20*time.Second)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("read %q (%v), want %q", got, err, want)
	}
}

func wantSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	setReadTimeout(t, conn, 50*time.Millisecond)
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes (%v), want none to come", n, err)
	}
}

func wantEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	setReadTimeout(t, conn, 20*time.Second)
	if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes (%v), want the end", n, err)
	}
}

func TestProxyForwards(t *testing.T) {
	t.Parallel()
	conn := dial(t, echoProxy(t))
	large := bytes.Repeat([]byte("0123456789"), 100_000)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(large)
		wrote <- err
	}()
	wantReply(t, conn, string(large))
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	// What the server says after the client's last byte still arrives.
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantReply(t, conn, "bye")
	wantEnd(t, conn)
}

func TestProxyStallsAndResumes(t *testing.T) {
	t.Parallel()
	for _, dir := range []Direction{ToServer, ToClient} {
		p := echoProxy(t)
		conn := dial(t, p)
		p.Stall(dir)
		send(t, conn, "slow")
		wantSilence(t, conn)
		p.Resume()
		wantReply(t, conn, "slow")
	}
}

func TestProxyCutsAndRefuses(t *testing.T) {
	t.Parallel()
	p := echoProxy(t)
	conn := dial(t, p)
	send(t, conn, "a")
	wantReply(t, conn, "a")
	p.Refuse()
	send(t, conn, "b")
	wantReply(t, conn, "b")
	p.Cut()
	wantEnd(t, conn)
	if refused, err := net.Dial("tcp", p.Addr()); err == nil {
		wantEnd(t, refused)
		refused.Close()
	}
	p.Accept()
	conn = dial(t, p)
	send(t, conn, "c")
	wantReply(t, conn, "c")
}

func TestProxyHookSeesBytesBeforeTheyPass(t *testing.T) {
	t.Parallel()
	p := echoProxy(t)
	other, conn := dial(t, p), dial(t, p)
	send(t, other, "0")
	wantReply(t, other, "0")
	send(t, conn, "1")
	wantReply(t, conn, "1")

	seen := make(chan string, 10)
	p.SetHook(func(dir Direction, n int, data []byte) Verdict {
		switch {
		case dir == ToServer && n == 1 && bytes.Contains(data, []byte("COMMIT")):
			seen <- string(data)
			return Hold
		case bytes.Contains(data, []byte("ROLLBACK")):
			return Cut
		}
		return Forward
	})
	send(t, conn, "COMMIT")
	if got := <-seen; got != "COMMIT" {
		t.Errorf("the hook saw %q", got)
	}
	wantSilence(t, conn)
	send(t, other, "COMMIT") // only the one connection is held
	wantReply(t, other, "COMMIT")
	p.Resume()
	wantReply(t, conn, "COMMIT")

	send(t, conn, "ROLLBACK")
	wantEnd(t, conn)
}

// A client that is killed while its bytes are held must not speak from the grave.
func TestProxyCutDropsWhatIsHeld(t *testing.T) {
	t.Parallel()
	p := echoProxy(t)
	conn := dial(t, p)
	held := make(chan struct{})
	passed := make(chan struct{}, 1)
	p.SetHook(func(dir Direction, _ int, _ []byte) Verdict {
		if dir == ToClient {
			passed <- struct{}{}
			return Forward
		}
		close(held)
		return Hold
	})
	send(t, conn, "COMMIT")
	<-held
	p.Cut()
	p.Resume()
	wantEnd(t, conn)
	if err := p.Close(); err != nil { // all copying has ended
		t.Fatal(err)
	}
	if len(passed) != 0 {
		t.Error("held bytes reached the server after the cut")
	}
}

func TestProxyDelays(t *testing.T) {
	t.Parallel()
	p := echoProxy(t)
	p.SetLatency(30 * time.Millisecond)
	conn := dial(t, p)
	start := time.Now()
	send(t, conn, "late")
	wantReply(t, conn, "late")
	if took := time.Since(start); took < 60*time.Millisecond {
		t.Errorf("there and back took %v, want at least 60ms", took)
	}
}

func TestProxySlowReader(t *testing.T) {
	t.Parallel()
	p := echoProxy(t)
	p.SetRate(20_000, ToServer)
	conn := dial(t, p)
	began := time.Now()
	text := string(bytes.Repeat([]byte("0123456789"), 1000))
	send(t, conn, text)
	wantReply(t, conn, text)
	if took := time.Since(began); took < 450*time.Millisecond {
		t.Errorf("10,000 bytes took %s at 20,000 a second", took)
	}
	p.SetRate(0, ToServer)
	began = time.Now()
	send(t, conn, text)
	wantReply(t, conn, text)
	if took := time.Since(began); took > 400*time.Millisecond {
		t.Errorf("10,000 bytes took %s without a limit", took)
	}
}
