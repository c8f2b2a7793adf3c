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

// wire is the replication connection after START_REPLICATION. It moves bytes, and knows nothing about messages.
type wire interface {
	// tryRead reads what has arrived. It does not wait: it returns 0 if nothing has.
	tryRead(p []byte) (int, error)
	// setDeadline sets when waitRead gives up.
	setDeadline(t time.Time) error
	// waitRead waits until something has arrived. At the deadline, or after interrupt, its error is os.ErrDeadlineExceeded.
	waitRead(p []byte) (int, error)
	// write sends all of p, within writeTimeout.
	write(p []byte) error
	// pause sleeps for d. Bytes that arrive meanwhile do not wake up the process.
	pause(d time.Duration)
	// interrupt ends a waitRead. It is the only method that another goroutine may call.
	interrupt()
	close() error
}

// writeTimeout bounds the send of a status message. Its 39 bytes always fit, unless the server has stopped reading.
const writeTimeout = 10 * time.Second

// socket is a connection that can be read without blocking. crypto/tls reads through it, so that an encrypted stream can be
// drained as well as a plain one: crypto/tls takes a read that would block for a time-out, after which it can go on.
type socket struct {
	net.Conn
	raw   syscall.RawConn
	lowat int // SO_RCVLOWAT

	nonblocking bool
	fn          func(fd uintptr) bool // reads into p; it is made once, because a closure for each read would be an allocation
	p           []byte                // for fn
	n           int                   // what fn has read
	err         error                 // of fn
}

// newSocket returns an error if the connection cannot be read without blocking.
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
				return true // true means: do not wait until there is more
			}
		}
	}
	return s, nil
}

// quietBytes is SO_RCVLOWAT while the reader sleeps. Without it, each segment that arrives would wake up the Go runtime's poller,
// which costs sender and reader a third of their time. Reads that do not block are not affected. The kernel lowers the value to
// what the receive buffer allows.
const quietBytes = 1 << 20

// setLowat sets SO_RCVLOWAT: the poller is woken only once so many bytes have arrived. If the option cannot be set, the stream is
// slower, and nothing else changes.
func (s *socket) setLowat(lowat int) {
	if s.lowat == lowat {
		return
	}
	_ = s.raw.Control(func(fd uintptr) { // it fails only on a closed connection, which the next read reports
		if syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, lowat) == nil {
			s.lowat = lowat
		}
	})
}

// Read blocks, unless nonblocking is set: then its error is os.ErrDeadlineExceeded if nothing has arrived.
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

// netWire is a wire over a connection that pgconn has set up.
type netWire struct {
	top  net.Conn // what carries the protocol: TLS, or the socket itself
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
			break // one read takes all that has arrived; TLS returns one record at a time
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
	// A deadline that has passed would make every later read fail, also those that do not block.
	return n, errors.Join(err, w.top.SetReadDeadline(time.Time{}))
}

func (w *netWire) write(p []byte) error {
	if err := w.top.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := w.top.Write(p)
	return err
}

func (w *netWire) interrupt() { _ = w.top.SetReadDeadline(time.Unix(1, 0)) } // on a closed connection this fails, and the read has ended anyway

func (w *netWire) close() error { return w.top.Close() }

// counted counts the bytes that pgconn reads, and knows whether it is reading. takeOver needs both.
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

// framed never gives pgproto3.Frontend more than the message that it asks for. So the frontend's buffer is empty between messages,
// and the connection can be taken over there.
type framed struct {
	r    io.Reader
	head [5]byte
	have int   // bytes of head that were not given out yet
	body int   // bytes of the body that were not given out yet
	n    int64 // bytes read from r
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

// handover sets up a configuration of pgconn so that the connection can be taken over from pgconn once it streams.
type handover struct {
	sock    *socket
	counted *counted
	framed  *framed
}

// install changes the configuration. The connection has to be made with it before takeOver is called.
func (h *handover) install(cfg *pgconn.Config) {
	dialer := newDialer()
	control := dialer.Control
	dialer.Control = func(network, addr string, c syscall.RawConn) error {
		if to, err := netip.ParseAddrPort(addr); err == nil && to.Addr().IsLoopback() {
			clampWindow(c) // before it connects, because a window that was announced is not taken back
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
			_ = c.Close() // the first error counts
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

// takeOver takes the connection over from pgconn. pgconn may read in the background after a slow write. Bytes that it has read,
// or is about to read, would be lost to us in silence; if there are any, takeOver closes the connection and returns an error.
func (h *handover) takeOver(conn *pgconn.PgConn) (*netWire, error) {
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, err
	}
	if h.counted.reading.Load() != 0 || h.counted.n.Load() != h.framed.n || h.framed.body != 0 || h.framed.have != 0 {
		_ = hijacked.Conn.Close() // the error below counts
		return nil, errors.New("bytes of the stream were read too early")
	}
	return &netWire{top: h.counted.Conn, sock: h.sock}, nil
}
