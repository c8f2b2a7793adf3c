package replication

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/testcert"
)

// plainPipe returns a netWire and the other end of its connection.
func plainPipe(t *testing.T) (*netWire, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = raw.Close(), far.Close() })
	s, err := newSocket(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &netWire{top: s, sock: s}, far
}

// tlsPipe is plainPipe over TLS.
func tlsPipe(t *testing.T) (*netWire, net.Conn) {
	t.Helper()
	w, far := plainPipe(t)
	server := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{testcert.SelfSigned(t).TLS}})
	client := tls.Client(w.sock, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	return &netWire{top: client, sock: w.sock}, server
}

func forPlainAndTLS(t *testing.T, f func(t *testing.T, w *netWire, far net.Conn)) {
	for name, pipe := range map[string]func(*testing.T) (*netWire, net.Conn){"plain": plainPipe, "tls": tlsPipe} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, far := pipe(t)
			f(t, w, far)
		})
	}
}

// A read that does not wait returns what has arrived. If nothing has, the connection is as good as before.
func TestTryRead(t *testing.T) {
	t.Parallel()
	forPlainAndTLS(t, func(t *testing.T, w *netWire, far net.Conn) {
		var want, got []byte
		p := make([]byte, 1<<20)
		go func() {
			b := bytes.Repeat([]byte("0123456789abcdef"), 40_000)
			for i := 0; len(b) > 0; i++ {
				n := min(len(b), 1+i*i%90_000)
				if _, err := far.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
		}()
		want = bytes.Repeat([]byte("0123456789abcdef"), 40_000)
		empty := 0
		for deadline := time.Now().Add(20 * time.Second); len(got) < len(want); {
			n, err := w.tryRead(p)
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("%d bytes of %d: %v", len(got), len(want), err)
			}
			if n == 0 {
				empty++
			}
			got = append(got, p[:n]...)
		}
		if !bytes.Equal(got, want) {
			t.Error("other bytes than were sent")
		}
		if n, err := w.tryRead(p); n != 0 || err != nil {
			t.Errorf("nothing is there: %d, %v", n, err)
		}
		_ = far.Close()
		for deadline := time.Now().Add(20 * time.Second); ; {
			_, err := w.tryRead(p)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("after the end: %v, want EOF", err)
			}
		}
	})
}

func TestWaitRead(t *testing.T) {
	t.Parallel()
	forPlainAndTLS(t, func(t *testing.T, w *netWire, far net.Conn) {
		p := make([]byte, 100)
		if err := w.setDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.waitRead(p); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("at the deadline: %v", err)
		}
		if n, err := w.tryRead(p); n != 0 || err != nil {
			t.Errorf("after a deadline has passed: %d, %v", n, err)
		}
		if err := w.setDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		go w.interrupt()
		if _, err := w.waitRead(p); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("when interrupted: %v", err)
		}
		if _, err := far.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := w.setDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if n, err := w.waitRead(p); string(p[:n]) != "hello" || err != nil {
			t.Errorf("%q, %v", p[:n], err)
		}
	})
}

// The frontend never gets a byte from beyond the message that it asks for.
func TestFramed(t *testing.T) {
	t.Parallel()
	var all []byte
	for i := range 50 {
		all = append(all, message('d', bytes.Repeat([]byte{byte(i)}, i*37%400))...)
	}
	f := &framed{r: bytes.NewReader(all)}
	var got []byte
	p := make([]byte, 10_000)
	for {
		n, err := f.Read(p)
		got = append(got, p[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n > 400 {
			t.Fatalf("%d bytes in one read", n)
		}
	}
	if !bytes.Equal(got, all) || f.n != int64(len(all)) {
		t.Errorf("%d bytes, counted %d, want %d", len(got), f.n, len(all))
	}
	if _, err := io.ReadAll(&framed{r: bytes.NewReader([]byte{'d', 0, 0, 0, 1})}); err == nil {
		t.Error("a message of length 1 is no error")
	}
}

// Bytes that arrive in a pause wake up nobody. After the pause a read that waits returns as soon as one byte is there.
func TestPause(t *testing.T) {
	t.Parallel()
	forPlainAndTLS(t, func(t *testing.T, w *netWire, far net.Conn) {
		w.pause(time.Millisecond)
		lowat := func() (v int) {
			t.Helper()
			err := w.sock.raw.Control(func(fd uintptr) {
				var err error
				if v, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT); err != nil {
					t.Error(err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if got := lowat(); got <= 1 {
			t.Errorf("SO_RCVLOWAT is %d in a pause", got)
		}
		p := make([]byte, 1<<20)
		if _, err := far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := w.setDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := w.waitRead(p); n != 1 || err != nil {
			t.Errorf("read %d bytes: %v", n, err)
		}
		if got := lowat(); got != 1 {
			t.Errorf("SO_RCVLOWAT is %d after it", got)
		}
	})
}
