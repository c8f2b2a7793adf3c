package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
)

// fakeWire is a wire whose other end is the test. It is used in a synctest bubble.
type fakeWire struct {
	in       chan []byte // what the server sends; closed when the connection ends
	rest     []byte
	deadline time.Time
	broken   chan struct{}

	mu   sync.Mutex
	sent []sentStatus
	raw  []byte
}

type sentStatus struct {
	at                  time.Time
	write, flush, apply uint64
}

func newFakeWire() *fakeWire {
	return &fakeWire{in: make(chan []byte, 100), broken: make(chan struct{}, 1)}
}

// take copies the bytes b, which have arrived, to p. The end of the input is nil.
func (w *fakeWire) take(p, b []byte) (int, error) {
	if b == nil {
		return 0, io.EOF
	}
	n := copy(p, b)
	w.rest = b[n:]
	return n, nil
}

func (w *fakeWire) tryRead(p []byte) (int, error) {
	if len(w.rest) > 0 {
		return w.take(p, w.rest)
	}
	select {
	case b := <-w.in:
		return w.take(p, b)
	default:
		return 0, nil
	}
}

func (w *fakeWire) setDeadline(t time.Time) error { w.deadline = t; return nil }

func (w *fakeWire) pause(d time.Duration) { time.Sleep(d) }

func (w *fakeWire) waitRead(p []byte) (int, error) {
	t := time.NewTimer(time.Until(w.deadline))
	defer t.Stop()
	select {
	case b := <-w.in:
		return w.take(p, b)
	case <-t.C:
	case <-w.broken:
	}
	return 0, os.ErrDeadlineExceeded
}

func (w *fakeWire) write(p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.raw = append(w.raw, p...)
	if p[0] == 'd' && p[5] == 'r' {
		w.sent = append(w.sent, sentStatus{
			time.Now(), binary.BigEndian.Uint64(p[6:]), binary.BigEndian.Uint64(p[14:]), binary.BigEndian.Uint64(p[22:]),
		})
	}
	return nil
}

func (w *fakeWire) interrupt()   { w.broken <- struct{}{} }
func (w *fakeWire) close() error { return nil }

func (w *fakeWire) statuses() []sentStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]sentStatus(nil), w.sent...)
}

type fakeProgress struct {
	mu        sync.Mutex
	confirmed pglogrepl.LSN
	inFlight  int
}

func (p *fakeProgress) set(lsn pglogrepl.LSN, inFlight int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.confirmed, p.inFlight = lsn, inFlight
}

func (p *fakeProgress) Confirmed() pglogrepl.LSN {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.confirmed
}
func (*fakeProgress) Reported(pglogrepl.LSN, time.Time, time.Time) {}
func (p *fakeProgress) InFlight() int                              { p.mu.Lock(); defer p.mu.Unlock(); return p.inFlight }

func message(kind byte, body []byte) []byte {
	b := []byte{kind, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[1:], uint32(len(body)+4))
	return append(b, body...)
}

func keepalive(lsn uint64, reply byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'k'}, lsn)
	return message('d', append(binary.BigEndian.AppendUint64(b, 0), reply))
}

// xlog makes an XLogData message. Its header has LSNs, which mean nothing to the stream.
func xlog(data string) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'w'}, 0x7777)
	b = binary.BigEndian.AppendUint64(b, 0x8888)
	return message('d', append(binary.BigEndian.AppendUint64(b, 0), data...))
}

// end waits until a stream has ended by itself, and returns its error.
func end(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Hour): // of virtual time
		t.Fatal("the stream goes on")
		return nil
	}
}

func errorResponse(fields string) []byte { return message('E', []byte(fields)) }

// testStream calls Next in a goroutine until it fails, and passes on what it returned.
func testStream(ctx context.Context, s *Stream) (frames chan Frame, ended chan error) {
	frames, ended = make(chan Frame, 1000), make(chan error, 1)
	go func() {
		for {
			f, err := s.Next(ctx)
			if err != nil {
				ended <- err
				return
			}
			f.Data = append([]byte(nil), f.Data...)
			frames <- f
		}
	}()
	return frames, ended
}

// In five idle minutes we send a status every five seconds, and not more often.
func TestStatusWhenIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWire()
		s := newStream(w, senderTimeout/3)
		s.canPause = true
		p := &fakeProgress{confirmed: 77}
		s.Track(p)
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		_, ended := testStream(ctx, s)
		time.Sleep(5*time.Minute + time.Millisecond)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		got := w.statuses()
		// The first status reports the progress from 0 to 77.
		if want := 20 * time.Millisecond; got[0].at.Sub(start) != want {
			t.Errorf("first status after %s, want %s", got[0].at.Sub(start), want)
		}
		if len(got) != 60 {
			t.Errorf("%d status messages in five minutes, want 60", len(got))
		}
		for i := 1; i < len(got); i++ {
			if d := got[i].at.Sub(got[i-1].at); d != 5*time.Second {
				t.Errorf("status %d came %s after the one before, want 5s", i, d)
			}
		}
	})
}

// Progress is reported within 50 ms although no byte arrives, and write = flush = apply.
func TestProgressIsReportedSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWire()
		s := newStream(w, senderTimeout/3)
		s.canPause = true
		p := &fakeProgress{}
		s.Track(p)
		ctx, cancel := context.WithCancel(t.Context())
		_, ended := testStream(ctx, s)
		time.Sleep(time.Second)
		w.in <- xlog("event") // in flight from now on
		p.set(0, 1)
		time.Sleep(333 * time.Millisecond)
		if got := w.statuses(); len(got) != 0 {
			t.Errorf("status %+v before there was progress", got)
		}
		const times = 20
		var settled [times]time.Time
		for i := range times { // at different times after the last look at the progress
			settled[i] = time.Now()
			p.set(pglogrepl.LSN(0x1234+i), 1)
			time.Sleep(time.Second + time.Duration(i)*7*time.Millisecond)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		got := w.statuses()
		if len(got) != times {
			t.Fatalf("%d status messages, want %d", len(got), times)
		}
		for i, s := range got {
			if d := s.at.Sub(settled[i]); d > 50*time.Millisecond {
				t.Errorf("progress was reported after %s, want at most 50ms", d)
			}
			if lsn := uint64(0x1234 + i); s.write != lsn || s.flush != lsn || s.apply != lsn {
				t.Errorf("status %+v, want write = flush = apply = %#x", s, lsn)
			}
		}
	})
}

// While nothing is settled, flush must be 0, and must be sent as 0.
func TestStatusBeforeProgressConfirmsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWire()
		s := newStream(w, senderTimeout/3)
		s.canPause = true
		s.Track(&fakeProgress{inFlight: 1})
		ctx, cancel := context.WithCancel(t.Context())
		_, ended := testStream(ctx, s)
		w.in <- xlog("event")
		w.in <- keepalive(0x9999, 1)
		time.Sleep(time.Second)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		got := w.statuses()
		if len(got) != 1 {
			t.Fatalf("%d status messages, want 1: the reply", len(got))
		}
		if s := got[0]; s.write != 0 || s.flush != 0 || s.apply != 0 {
			t.Errorf("status %+v, want zeros", s)
		}
	})
}

// We reply once per 50 ms at most. If we replied at once, we and the server would exchange thousands of messages a second.
func TestRepliesAreLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWire()
		s := newStream(w, senderTimeout/3)
		s.canPause = true
		s.Track(&fakeProgress{})
		ctx, cancel := context.WithCancel(t.Context())
		_, ended := testStream(ctx, s)
		start := time.Now()
		for i := range 200 { // each at another LSN, so that it is no shutdown
			w.in <- keepalive(uint64(1000+i), 1)
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		got := w.statuses()
		if len(got) < 15 || len(got) > 20 {
			t.Fatalf("%d replies in a second, want 20 at most and about that", len(got))
		}
		if d := got[0].at.Sub(start); d > 50*time.Millisecond {
			t.Errorf("first reply after %s", d)
		}
	})
}

// A server that is shutting down asks again and again for a position that cannot be confirmed any more.
func TestKeepaliveStormEndsTheStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newFakeWire()
		s := newStream(w, senderTimeout/3)
		s.canPause = true
		s.Track(&fakeProgress{confirmed: 5})
		_, ended := testStream(t.Context(), s)
		for range stopRequests {
			w.in <- keepalive(1000, 1)
			time.Sleep(50 * time.Millisecond)
		}
		if err := end(t, ended); !errors.Is(err, ErrServerStopping) {
			t.Errorf("ended with %v, want ErrServerStopping", err)
		}
		close(w.in)
		s.Close()
		got := w.statuses()
		if last := got[len(got)-1]; last.flush != 5 {
			t.Errorf("last status %+v, want flush 5", last)
		}
		if tail := string(w.raw[len(w.raw)-10:]); tail != "c\x00\x00\x00\x04X\x00\x00\x00\x04" {
			t.Errorf("the stream ends with %q, want CopyDone and Terminate", tail)
		}
	})
}

func TestWhatTheServerSays(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		send []byte
		want func(error) bool
	}{
		"error": {errorResponse("SERROR\x00C42704\x00Mpublication \"p\" does not exist\x00\x00"), func(err error) bool {
			var e *pgconn.PgError
			return errors.As(err, &e) && e.Code == "42704"
		}},
		"publication skipped (18)": {
			message('N', []byte("SWARNING\x00C55000\x00Mskipped loading publication: p\x00RLoadPublications\x00\x00")),
			func(err error) bool { return errors.Is(err, ErrPublicationMissing) },
		},
		"copy done":       {message('c', nil), func(err error) bool { return errors.Is(err, ErrServerStopping) }},
		"unknown":         {message('Q', []byte("x")), func(err error) bool { return err != nil }},
		"length 0":        {[]byte{'d', 0, 0, 0, 0}, func(err error) bool { return err != nil }},
		"length of 3 GB":  {[]byte{'d', 0xc0, 0, 0, 0}, func(err error) bool { return err != nil }},
		"short keepalive": {message('d', []byte{'k', 1, 2, 3}), func(err error) bool { return err != nil }},
		"empty copy data": {message('d', nil), func(err error) bool { return err != nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newFakeWire()
				s := newStream(w, senderTimeout/3)
				s.canPause = true
				_, ended := testStream(t.Context(), s)
				w.in <- tt.send
				if err := end(t, ended); !tt.want(err) {
					t.Errorf("ended with %v", err)
				}
			})
		})
	}
}
