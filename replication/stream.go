// Package replication is the stream: the one connection over which PostgreSQL sends changes, and over which we report the
// confirmed LSN. It also knows how every connection of ours to PostgreSQL is set up, and why a server refuses one.
//
// It does not make or check slot and publication, which is what package provision does, and it does not know what the changes
// mean, which is what package decoder does.
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
	readBuffer   = 256 << 10             // a CopyData message that is larger than the buffer comes in pieces
	maxMessage   = 1<<30 + 1<<20         // PostgreSQL's own limit of a message, and some room
	largeHead    = 5 + 25 + 8            // bytes of a large message that must have arrived before it is handed on; see Frame
	statusPause  = 20 * time.Millisecond // between two reports of progress
	replyPause   = 50 * time.Millisecond // between two answers to "reply requested"
	stopRequests = 10                    // requests for a reply at one LSN, within a second: the server is shutting down
)

// ErrServerStopping says that the server is shutting down, and waits for us to close the stream.
var ErrServerStopping = errors.New("the server is shutting down")

// ErrPublicationMissing says that the server has left out rows because it did not find the publication.
var ErrPublicationMissing = errors.New("publication missing")

// Progress is what the stream reports to PostgreSQL.
type Progress interface {
	// Confirmed is the LSN up to which everything is settled, durably. The stream never reports any other LSN.
	Confirmed() pglogrepl.LSN
	// InFlight is the number of events that are not settled yet. While it is not 0, the stream looks at Confirmed often.
	InFlight() int
	// Reported is called after each status message, with the LSN that it has reported, and when the sending began and ended.
	Reported(lsn pglogrepl.LSN, began, ended time.Time)
}

// Frame is one message of the stream.
type Frame struct {
	// Keepalive is set for a keepalive. Its LSN is the server's: whatever commits before that LSN was sent before the keepalive.
	Keepalive bool
	LSN       pglogrepl.LSN
	// Data is a pgoutput message if Keepalive is not set. Of a message that does not fit into the stream's buffer it is the
	// beginning, at least 8 bytes. It is valid until the next call of Next or More.
	Data []byte
	// Rest is the number of bytes of the message that follow Data. More returns them, and Next skips those that nobody has asked
	// for.
	Rest int
}

// Stream is a replication connection after START_REPLICATION. One goroutine owns it, sends included, so there is no lock. The only
// thing that others do to it: the end of a context, and AskKeepalive, interrupt a read that waits.
type Stream struct {
	wire     wire
	progress Progress
	every    time.Duration // between two status messages at most

	buf  []byte // of readBuffer bytes; it never grows
	r, w int    // the unread bytes are buf[r:w]
	rest int    // bytes of a large message that were neither returned nor skipped yet

	pacer       pacer
	fast        atomic.Bool // pacer.fast, for other goroutines
	canPause    bool        // false on a Unix socket: its buffer is so small that a pause would make the sender wait
	lastStatus  time.Time
	lastSent    pglogrepl.LSN
	replyWanted bool
	asks        atomic.Bool   // a keepalive is to be asked for
	waited      time.Duration // for the server, in all

	broken bool // reading or writing has failed
	closed bool

	// Requests for a reply, by which a server that is shutting down is recognised.
	askedAt   pglogrepl.LSN // the LSN of the last one
	asked     int           // the number of requests at this LSN
	askedFrom time.Time     // when the first of them came
}

// newStream makes a stream that sends a status message after every at the latest, and never pauses: the caller may set canPause.
func newStream(w wire, every time.Duration) *Stream {
	return &Stream{wire: w, progress: noProgress{}, every: every, buf: make([]byte, readBuffer), lastStatus: time.Now()}
}

// noProgress is the progress of a session that does not know its checkpoint yet. PostgreSQL ignores the position 0.
type noProgress struct{}

func (noProgress) Confirmed() pglogrepl.LSN                     { return 0 }
func (noProgress) InFlight() int                                { return 0 }
func (noProgress) Reported(pglogrepl.LSN, time.Time, time.Time) {}

// Track sets whose progress is reported from now on.
func (s *Stream) Track(p Progress) { s.progress = p }

// Fast reports whether the stream is fast. If it is, others may take their time too, and work in larger batches. Any goroutine
// may call it.
func (s *Stream) Fast() bool { return s.fast.Load() }

// Waited returns how long the stream has waited for the server in all: for something to arrive, and for a status message to leave. The time in
// which it takes what has arrived does not count. Only the owner may call it.
func (s *Stream) Waited() time.Duration { return s.waited }

// Broken reports whether the connection is gone. Another process may have the slot then.
func (s *Stream) Broken() bool { return s.broken || s.closed }

// Buffered reports whether Next will return a message without a look at the network.
func (s *Stream) Buffered() bool { return s.rest == 0 && s.complete() > 0 }

// Next returns the next message, or the beginning of a large one. It sends status messages while it waits. Its error ends
// the session: the stream cannot go on.
func (s *Stream) Next(ctx context.Context) (Frame, error) {
	f, err := s.nextFrame(ctx)
	s.broken = s.broken || err != nil && ctx.Err() == nil
	return f, err
}

// nextFrame is Next, without a note of the failure.
func (s *Stream) nextFrame(ctx context.Context) (Frame, error) {
	var stop func() bool
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	for {
		if s.rest > 0 {
			s.take() // skip what nobody has asked for
		}
		if n := s.complete(); s.rest == 0 && n > 0 {
			f, ok, err := s.parse(n)
			if ok || err != nil {
				return f, err
			}
			continue
		}
		if err := s.fill(ctx, &stop); err != nil {
			return Frame{}, err
		}
	}
}

// More returns further bytes of the message whose Frame had a Rest: as many as have arrived. If there are none yet, it waits for
// them as Next does. The bytes are valid until the next call of Next or More. Its error ends the session.
func (s *Stream) More(ctx context.Context) ([]byte, error) {
	if s.rest == 0 {
		return nil, errors.New("no more is left of the message")
	}
	var stop func() bool
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	for s.r == s.w {
		if err := s.fill(ctx, &stop); err != nil {
			s.broken = s.broken || ctx.Err() == nil
			return nil, err
		}
	}
	return s.take(), nil
}

// take takes the bytes of a large message that the buffer holds, and returns them.
func (s *Stream) take() []byte {
	n := min(s.rest, s.w-s.r)
	b := s.buf[s.r : s.r+n]
	s.r += n
	s.rest -= n
	return b
}

// fill reads what has arrived. If nothing has, it waits until something arrives or a status message is due, so it may return
// without new bytes. When it waits for the first time, it sets stop. The caller calls stop at its end; until then the end of ctx
// interrupts the wait.
func (s *Stream) fill(ctx context.Context, stop *func() bool) error {
	if err := s.Report(); err != nil {
		return err
	}
	s.makeRoom()
	n, err := s.wire.tryRead(s.buf[s.w:])
	if n == 0 && err == nil {
		if s.canPause {
			if s.pause(time.Now()) {
				n, err = s.wire.tryRead(s.buf[s.w:])
			}
		}
		if n == 0 && err == nil {
			if *stop == nil {
				*stop = context.AfterFunc(ctx, s.wire.interrupt)
			}
			n, err = s.waitForBytes(ctx)
		}
	}
	s.w += n
	s.pacer.hasRead(time.Now(), n)
	if s.pacer.fast != s.fast.Load() {
		s.fast.Store(s.pacer.fast)
	}
	if err != nil {
		return err
	}
	if n == 0 && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// pause sleeps as long as the pacer says. It reports whether that was any time.
func (s *Stream) pause(now time.Time) bool {
	d := s.pacer.pauseFor(now)
	if d <= 0 {
		return false
	}
	s.wire.pause(d)
	s.waited += time.Since(now)
	return true
}

// waitForBytes blocks until something has arrived or a status message is due. It sets the deadline before it looks at ctx.
// Otherwise the end of ctx could be lost:
//
//  1. waitForBytes looks at ctx, which has not ended;
//  2. ctx ends, and interrupt sets a deadline that has passed;
//  3. waitForBytes overwrites this deadline, and waits although ctx has ended.
//
// The same goes for AskKeepalive.
func (s *Stream) waitForBytes(ctx context.Context) (int, error) {
	now := time.Now()
	deadline := s.nextStatus(now)
	if err := s.wire.setDeadline(deadline); err != nil {
		return 0, err
	}
	if ctx.Err() != nil || s.nextStatus(now).Before(deadline) {
		return 0, nil
	}
	n, err := s.wire.waitRead(s.buf[s.w:])
	s.waited += time.Since(now)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return n, err
}

// complete returns the length of the first message in the buffer, or 0 if the message has not arrived as a whole. For a CopyData
// message that is larger than the buffer it returns the length of its head.
func (s *Stream) complete() int {
	have := s.w - s.r
	if have < 5 {
		return 0
	}
	n := int(binary.BigEndian.Uint32(s.buf[s.r+1:])) + 1
	switch {
	case n < 5 || n > maxMessage:
		return 5 // parse refuses it
	case n > readBuffer && s.buf[s.r] == 'd':
		n = largeHead
	case n > readBuffer: // parse refuses it: errors and notices are shorter, because PostgreSQL cuts long values in them
		return 5
	}
	if have < n {
		return 0
	}
	return n
}

// makeRoom makes room in the buffer for what is read next. The first message always fits, because a large one is taken out piece by
// piece.
func (s *Stream) makeRoom() {
	switch {
	case s.r == s.w:
		s.r, s.w = 0, 0
	case s.r > 0 && len(s.buf)-s.w < readBuffer/4:
		s.w = copy(s.buf, s.buf[s.r:s.w])
		s.r = 0
	}
}

// parse takes the first message, which has n bytes, off the buffer. ok is false if the caller need not see the message.
func (s *Stream) parse(n int) (f Frame, ok bool, err error) {
	kind := s.buf[s.r]
	length := int(binary.BigEndian.Uint32(s.buf[s.r+1:]))
	if kind == 'd' && n == largeHead && length+1 > readBuffer {
		s.rest = length + 1
		return s.large()
	}
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
		if e.Decode(body) != nil { // the error of Decode is io.EOF, which would look like the end of the connection
			return f, false, fmt.Errorf("message %q of %d bytes cannot be decoded", kind, len(body))
		}
		return f, false, pgconn.ErrorResponseToPgError(&e)
	case 'N':
		var e pgproto3.NoticeResponse
		if e.Decode(body) != nil { // the error of Decode is io.EOF, which would look like the end of the connection
			return f, false, fmt.Errorf("message %q of %d bytes cannot be decoded", kind, len(body))
		}
		// If PostgreSQL 18 does not find a publication, it leaves out its rows, and says so only in this notice.
		if e.Routine == "LoadPublications" {
			notice := pgproto3.ErrorResponse(e)
			return f, false, fmt.Errorf("%w: %w", ErrPublicationMissing, pgconn.ErrorResponseToPgError(&notice))
		}
		return f, false, nil
	case 'S':
		return f, false, nil
	case 'c', 'C', 'Z':
		return f, false, fmt.Errorf("the server ended the stream: %w", ErrServerStopping)
	}
	return f, false, fmt.Errorf("unexpected message %q in the stream", kind)
}

// large returns the beginning of a message that does not fit into the buffer.
func (s *Stream) large() (f Frame, ok bool, err error) {
	b := s.take()[5:]
	if b[0] != 'w' {
		return f, false, fmt.Errorf("unexpected copy data %q of more than %d bytes in the stream", b[0], readBuffer)
	}
	f.Data, f.Rest = b[25:], s.rest
	return f, true, nil
}

// copyData parses the two messages of a stream, XLogData and keepalive:
// https://www.postgresql.org/docs/current/protocol-replication.html
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

// stopping recognises a server that is shutting down. Such a server asks again and again, without end, for a position that we
// cannot confirm: it has ended the connections for SQL by then, so that nothing can be recorded any more.
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
