// Package replication owns what PostgreSQL calls logical replication: publication and slot (made, checked, dropped), and
// the stream, the one connection over which changes come and the confirmed LSN goes back. It does not know what the
// changes mean: that is the decoder's.
package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	readBuffer   = 256 << 10
	maxMessage   = 1<<30 + 1<<20         // PostgreSQL's own limit of a message, and some
	statusPause  = 20 * time.Millisecond // between two reports of progress
	replyPause   = 50 * time.Millisecond // between two answers to "reply requested"
	stopRequests = 10                    // requests for a reply at one LSN, within a second: the server is shutting down
)

// ErrServerStopping says that the server is shutting down and waits for us to let go.
var ErrServerStopping = errors.New("the server is shutting down")

// ErrPublicationMissing says that the server left rows out because it did not find the publication.
var ErrPublicationMissing = errors.New("publication missing")

// Progress is what the stream reports to PostgreSQL.
type Progress interface {
	// Confirmed is the LSN up to which everything is settled, durably. Nothing else is ever reported.
	Confirmed() pglogrepl.LSN
	// InFlight is the number of events that are not; while it is not 0, Confirmed is looked at often.
	InFlight() int
}

// Frame is one message of the stream.
type Frame struct {
	// Keepalive is set for a keepalive, whose LSN is the server's: all that commits before it was sent before it.
	Keepalive bool
	LSN       pglogrepl.LSN
	// Data is a pgoutput message otherwise. It is valid until the next call of Next.
	Data []byte
}

// Stream is a running replication connection. One goroutine owns it, sends included: there is no lock. A read that
// waits is interrupted by its context, and only that happens from outside.
type Stream struct {
	wire     wire
	progress Progress
	every    time.Duration // between two status messages at most

	buf  []byte
	r, w int // the unread bytes are buf[r:w]

	pacer       pacer
	fast        atomic.Bool // what the pacer says, for others
	canPause    bool        // not on a Unix socket: its small buffer makes the sender stand still
	lastStatus  time.Time
	lastSent    pglogrepl.LSN
	replyWanted bool

	broken bool // reading or writing has failed
	closed bool

	askedAt   pglogrepl.LSN // requests for a reply at this LSN,
	asked     int           // so many
	askedFrom time.Time     // since then
}

func newStream(w wire, every time.Duration, canPause bool) *Stream {
	return &Stream{wire: w, progress: nothing{}, every: every, canPause: canPause, buf: make([]byte, readBuffer), lastStatus: time.Now()}
}

// nothing is the progress of a session that does not know its checkpoint yet. PostgreSQL ignores position 0.
type nothing struct{}

func (nothing) Confirmed() pglogrepl.LSN { return 0 }
func (nothing) InFlight() int            { return 0 }

// Track sets what is reported from now on.
func (s *Stream) Track(p Progress) { s.progress = p }

// Fast says that the stream is fast: others may then take their time too, and work in larger batches. Any goroutine may
// ask.
func (s *Stream) Fast() bool { return s.fast.Load() }

// Broken says that the connection is gone, and with it the slot.
func (s *Stream) Broken() bool { return s.broken || s.closed }

// Buffered says that Next returns without looking at the network.
func (s *Stream) Buffered() bool { return s.complete() > 0 }

// Next returns the next message. It sends status messages while it waits. Its error ends the session: the stream
// cannot go on.
func (s *Stream) Next(ctx context.Context) (Frame, error) {
	f, err := s.next(ctx)
	s.broken = s.broken || err != nil && ctx.Err() == nil
	return f, err
}

func (s *Stream) next(ctx context.Context) (Frame, error) {
	stop := func() bool { return true }
	defer func() { stop() }()
	for waiting := false; ; {
		if n := s.complete(); n > 0 {
			f, ok, err := s.parse(n)
			if ok || err != nil {
				return f, err
			}
			continue
		}
		if err := s.Report(); err != nil {
			return Frame{}, err
		}
		s.makeRoom()
		n, err := s.wire.tryRead(s.buf[s.w:])
		if n == 0 && err == nil {
			if s.canPause {
				if d := s.pacer.empty(time.Now()); d > 0 {
					s.wire.pause(d)
					n, err = s.wire.tryRead(s.buf[s.w:])
				}
			}
			if n == 0 && err == nil {
				if !waiting {
					waiting = true
					stop = context.AfterFunc(ctx, s.wire.interrupt)
				}
				n, err = s.wait(ctx)
			}
		}
		s.w += n
		s.pacer.read(time.Now(), n)
		if s.pacer.fast != s.fast.Load() {
			s.fast.Store(s.pacer.fast)
		}
		if err != nil {
			return Frame{}, err
		}
		if n == 0 && ctx.Err() != nil {
			return Frame{}, context.Cause(ctx)
		}
	}
}

// wait blocks until something is there or something is to be sent. The deadline is set before ctx is looked at:
//
//  1. wait sets the deadline;
//  2. ctx ends, and interrupt sets a deadline that has passed;
//  3. waitRead returns at once. Had ctx been looked at before 1, its end in between would be overwritten.
func (s *Stream) wait(ctx context.Context) (int, error) {
	if err := s.wire.setDeadline(s.nextStatus(time.Now())); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, nil
	}
	n, err := s.wire.waitRead(s.buf[s.w:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return n, err
}

// complete returns the length of the first message in the buffer, 0 while it is not there as a whole.
func (s *Stream) complete() int {
	if s.w-s.r < 5 {
		return 0
	}
	n := int(binary.BigEndian.Uint32(s.buf[s.r+1:])) + 1
	if n < 5 || n > maxMessage {
		return 5 // parse says what is wrong
	}
	if s.w-s.r < n {
		return 0
	}
	return n
}

// makeRoom makes room for at least the rest of a message that is there in part.
func (s *Stream) makeRoom() {
	if s.r == s.w {
		s.r, s.w = 0, 0
		if len(s.buf) > 4*readBuffer { // one large message must not cost its memory for ever
			s.buf = make([]byte, readBuffer)
		}
		return
	}
	need := readBuffer / 4
	if s.w-s.r >= 5 {
		need = max(need, int(binary.BigEndian.Uint32(s.buf[s.r+1:]))+1-(s.w-s.r))
	}
	if len(s.buf)-s.w >= need {
		return
	}
	to := s.buf
	if have := s.w - s.r; len(s.buf)-have < need {
		to = make([]byte, have+need)
	}
	s.w = copy(to, s.buf[s.r:s.w])
	s.r, s.buf = 0, to
}

// parse takes the first message, of n bytes, off the buffer. ok is false for one that is of no interest.
func (s *Stream) parse(n int) (f Frame, ok bool, err error) {
	kind := s.buf[s.r]
	length := int(binary.BigEndian.Uint32(s.buf[s.r+1:]))
	if length+1 != n {
		return f, false, fmt.Errorf("message %q of length %d", kind, length)
	}
	body := s.buf[s.r+5 : s.r+n]
	s.r += n
	switch kind {
	case 'd':
		return s.copyData(body)
	case 'E':
		var e pgproto3.ErrorResponse
		if err := e.Decode(body); err != nil {
			return f, false, err
		}
		return f, false, pgconn.ErrorResponseToPgError(&e)
	case 'N':
		var e pgproto3.NoticeResponse
		if err := e.Decode(body); err != nil {
			return f, false, err
		}
		// PostgreSQL 18 leaves out the rows of a publication that it does not find, and says so here only.
		if e.Routine == "LoadPublications" {
			return f, false, fmt.Errorf("%w: %s", ErrPublicationMissing, e.Message)
		}
		return f, false, nil
	case 'S':
		return f, false, nil
	case 'c', 'C', 'Z':
		return f, false, fmt.Errorf("the server ended the stream: %w", ErrServerStopping)
	}
	return f, false, fmt.Errorf("unexpected message %q in the stream", kind)
}

// copyData parses https://www.postgresql.org/docs/current/protocol-replication.html: XLogData and keepalive.
func (s *Stream) copyData(b []byte) (f Frame, ok bool, err error) {
	switch {
	case len(b) >= 25 && b[0] == 'w':
		f.Data = b[25:]
		return f, true, nil
	case len(b) >= 18 && b[0] == 'k':
		f.Keepalive = true
		f.LSN = pglogrepl.LSN(binary.BigEndian.Uint64(b[1:]))
		if b[17] != 0 {
			s.replyWanted = true
			if err := s.stopping(f.LSN, time.Now()); err != nil {
				return f, false, err
			}
		}
		return f, true, nil
	}
	return f, false, fmt.Errorf("unexpected copy data of %d bytes in the stream", len(b))
}

// stopping notices that a server that is shutting down asks again and again, without end, for a position that we
// cannot confirm: SQL sessions are gone by then, so nothing can be recorded any more.
func (s *Stream) stopping(lsn pglogrepl.LSN, now time.Time) error {
	if lsn != s.askedAt || now.Sub(s.askedFrom) > time.Second {
		s.askedAt, s.asked, s.askedFrom = lsn, 0, now
	}
	s.asked++
	if s.asked >= stopRequests {
		return ErrServerStopping
	}
	return nil
}
