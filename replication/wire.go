package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// wire is the replication connection after START_REPLICATION: bytes in, bytes out.
type wire interface {
	// tryRead reads what is there, and 0 bytes when nothing is.
	tryRead(p []byte) (int, error)
	// setDeadline sets when waitRead gives up.
	setDeadline(t time.Time) error
	// waitRead waits for something to be there; os.ErrDeadlineExceeded at the deadline, or after interrupt.
	waitRead(p []byte) (int, error)
	// write sends all of p, within writeTimeout.
	write(p []byte) error
	// pause lets bytes pile up for d, unnoticed.
	pause(d time.Duration)
	// interrupt ends a waitRead from another goroutine. It is the only thing that another goroutine may do.
	interrupt()
	close() error
}

// writeTimeout bounds the send of a status message: 39 bytes do not fit only when the server has stopped reading.
const writeTimeout = 10 * time.Second

// socket is a connection that can be read without blocking. crypto/tls reads through it, so that an encrypted stream
// is drained like a plain one: a read that would block is a time-out to it, which it survives.
type socket struct {
	net.Conn
	raw   syscall.RawConn
	lowat int // SO_RCVLOWAT

	nonblocking bool
	fn          func(fd uintptr) bool // made once: a closure a read would be an allocation a read
	p           []byte
	n           int
	err         error
}

func newSocket(c net.Conn) (*socket, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("connection of type %T cannot be read without blocking", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{Conn: c, raw: raw, lowat: 1}
	s.fn = func(fd uintptr) bool {
		for {
			s.n, s.err = syscall.Read(int(fd), s.p)
			if !errors.Is(s.err, syscall.EINTR) {
				return true // never wait for more
			}
		}
	}
	return s, nil
}

// While the reader sleeps, every segment that arrives would still wake the Go runtime's poller: a third of the time of
// sender and reader both. A high SO_RCVLOWAT keeps the kernel from telling; reads that do not block are untouched by it.
const quietBytes = 1 << 20 // the kernel takes what the receive buffer allows

// setLowat sets SO_RCVLOWAT: the poller is woken only once so many bytes have arrived. If the option cannot be set, the stream is
// slower, and nothing else changes.
func (s *socket) setLowat(lowat int) {
	if s.lowat == lowat {
		return
	}
	_ = s.raw.Control(func(fd uintptr) { // fails on a closed connection only, as the next read will tell
		if syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, lowat) == nil {
			s.lowat = lowat
		}
	})
}

func (s *socket) Read(p []byte) (int, error) {
	if !s.nonblocking || len(p) == 0 {
		return s.Conn.Read(p)
	}
	s.p = p
	if err := s.raw.Read(s.fn); err != nil {
		return 0, err
	}
	switch {
	case errors.Is(s.err, syscall.EAGAIN):
		return 0, os.ErrDeadlineExceeded
	case s.err != nil:
		return 0, os.NewSyscallError("read", s.err)
	case s.n == 0:
		return 0, io.EOF
	}
	return s.n, nil
}

// netWire is a wire over a connection that pgconn has set up: top is what carries the protocol, TLS or the socket.
type netWire struct {
	top  net.Conn
	sock *socket
}

func (w *netWire) tryRead(p []byte) (n int, err error) {
	w.sock.nonblocking = true
	defer func() { w.sock.nonblocking = false }()
	for n < len(p) && err == nil {
		var m int
		m, err = w.top.Read(p[n:])
		n += m
		if w.top == net.Conn(w.sock) {
			break // one read takes all there is; TLS gives a record at a time
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return n, err
}

func (w *netWire) setDeadline(t time.Time) error { return w.top.SetReadDeadline(t) }

func (w *netWire) pause(d time.Duration) {
	w.sock.setLowat(quietBytes)
	time.Sleep(d)
}

func (w *netWire) waitRead(p []byte) (int, error) {
	w.sock.setLowat(1)
	n, err := w.top.Read(p)
	// A deadline that has passed would fail every later read, those that do not block included.
	return n, errors.Join(err, w.top.SetReadDeadline(time.Time{}))
}

func (w *netWire) write(p []byte) error {
	if err := w.top.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := w.top.Write(p)
	return err
}

func (w *netWire) interrupt() { _ = w.top.SetReadDeadline(time.Unix(1, 0)) } // a closed connection ends the read as well

func (w *netWire) close() error { return w.top.Close() }

// counted counts what pgconn reads, and knows whether it is reading: see takeOver.
type counted struct {
	net.Conn
	reading atomic.Int32
	n       atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	c.reading.Add(1)
	defer c.reading.Add(-1)
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// framed gives pgproto3.Frontend never more than the message it asks for, so that its buffer is empty between
// messages and the connection can change hands.
type framed struct {
	r    io.Reader
	head [5]byte
	have int // bytes of head that were not given out
	body int // bytes of the body that were not given out
	n    int64
}

func (f *framed) Read(p []byte) (int, error) {
	if f.have == 0 && f.body == 0 {
		if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
			return 0, err
		}
		f.n += 5
		f.have = 5
		f.body = int(uint32(f.head[1])<<24|uint32(f.head[2])<<16|uint32(f.head[3])<<8|uint32(f.head[4])) - 4
		if f.body < 0 {
			return 0, fmt.Errorf("message %q of length %d", f.head[0], f.body+4)
		}
	}
	if f.have > 0 {
		n := copy(p, f.head[5-f.have:])
		f.have -= n
		return n, nil
	}
	n, err := f.r.Read(p[:min(len(p), f.body)])
	f.n += int64(n)
	f.body -= n
	return n, err
}

// handover sets a pgconn configuration up so that the connection it makes can be taken over in mid-stream.
type handover struct {
	sock    *socket
	counted *counted
	framed  *framed
}

func (h *handover) install(cfg *pgconn.Config) {
	dialer := newDialer()
	control := dialer.Control
	dialer.Control = func(network, addr string, c syscall.RawConn) error {
		if to, err := netip.ParseAddrPort(addr); err == nil && to.Addr().IsLoopback() {
			clampWindow(c) // before it connects, so that the window is never taken back
		}
		return control(network, addr, c)
	}
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		s, err := newSocket(c)
		if err != nil {
			_ = c.Close() // of no use
			return nil, err
		}
		h.sock = s
		return s, nil
	}
	cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, c net.Conn) (net.Conn, error) {
		h.counted = &counted{Conn: c}
		return h.counted, nil
	}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		h.framed = &framed{r: r}
		return pgproto3.NewFrontend(h.framed, w)
	}
}

// takeOver takes the connection out of pgconn's hands. pgconn may read in the background after a slow write; bytes
// that it holds, or is about to get, would be lost to us in silence. Then the connection is of no use.
func (h *handover) takeOver(conn *pgconn.PgConn) (*netWire, error) {
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, err
	}
	if h.counted.reading.Load() != 0 || h.counted.n.Load() != h.framed.n || h.framed.body != 0 || h.framed.have != 0 {
		_ = hijacked.Conn.Close() // given up
		return nil, errors.New("bytes of the stream were read too early")
	}
	return &netWire{top: h.counted.Conn, sock: h.sock}, nil
}
