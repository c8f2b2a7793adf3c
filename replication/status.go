package replication

import (
	"encoding/binary"
	"time"

	"github.com/jackc/pglogrepl"
)

// Report sends a status message if one is due. The owner of the stream calls it while it waits for something else, because a
// walsender that hears nothing for wal_sender_timeout ends the connection.
func (s *Stream) Report() error {
	now := time.Now()
	if now.Before(s.nextStatus(now)) {
		return nil
	}
	return s.send(now)
}

// Wait returns for how long the owner may wait for something else before it has to call Report again.
func (s *Stream) Wait() time.Duration {
	s.pacer.hasWaited()
	now := time.Now()
	return s.nextStatus(now).Sub(now)
}

// nextStatus returns when the next status message is due: 20 ms after the last one if there is progress to report, 50 ms after the
// last one if the server asks for a reply, and in any case three times within wal_sender_timeout. While anything is in flight, it
// returns a time within the next 20 ms, so that the owner looks for progress again. So progress is reported within 50 ms.
func (s *Stream) nextStatus(now time.Time) time.Time {
	due := s.lastStatus.Add(s.every)
	if s.asks.Load() {
		due = earlier(due, s.lastStatus.Add(statusPause))
	}
	if s.replyWanted {
		due = earlier(due, s.lastStatus.Add(replyPause))
	}
	switch {
	case s.progress.Confirmed() > s.lastSent:
		due = earlier(due, s.lastStatus.Add(statusPause))
	case s.progress.InFlight() > 0:
		due = earlier(due, now.Add(statusPause))
	}
	return due
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// AskKeepalive makes the owner ask the server for a keepalive, which says how far the server has read. Any goroutine may call it. Whoever
// waits for anything of the stream's gets it within milliseconds, also if nothing happens.
func (s *Stream) AskKeepalive() {
	s.asks.Store(true)
	s.wire.interrupt()
}

// send sends a status message.
func (s *Stream) send(now time.Time) error {
	lsn := s.progress.Confirmed()
	var b [39]byte
	encodeStatus(&b, lsn, now)
	if s.asks.Swap(false) {
		b[38] = 1
	}
	if err := s.wire.write(b[:]); err != nil {
		s.broken = true
		return err
	}
	s.lastStatus, s.lastSent, s.replyWanted = now, lsn, false
	ended := time.Now()
	s.waited += ended.Sub(now)
	s.progress.Reported(lsn, now, ended)
	return nil
}

// encodeStatus writes a standby status update, within its CopyData message. write, flush and apply are all the confirmed LSN. We
// do not use pglogrepl's encoder: it takes a flush of 0 for "all that was received", so that events in flight would be lost.
func encodeStatus(b *[39]byte, confirmed pglogrepl.LSN, now time.Time) {
	b[0] = 'd'
	binary.BigEndian.PutUint32(b[1:], 38)
	b[5] = 'r'
	binary.BigEndian.PutUint64(b[6:], uint64(confirmed))
	binary.BigEndian.PutUint64(b[14:], uint64(confirmed))
	binary.BigEndian.PutUint64(b[22:], uint64(confirmed))
	binary.BigEndian.PutUint64(b[30:], uint64(now.UnixMicro()-946_684_800_000_000)) // since 2000
	b[38] = 0                                                                       // no reply wanted, unless somebody asks for a keepalive
}

// closeWait bounds for how long Close waits until the server closes the connection.
const closeWait = time.Second

// Close reports the confirmed LSN for the last time, and ends the stream. Before it closes the connection, it reads what the
// server still sends: to close a connection with unread bytes resets it, and the server might then not read the last status.
//
// A second call does nothing.
func (s *Stream) Close() {
	if s.closed {
		return
	}
	s.closed = true
	defer func() { _ = s.wire.close() }() // all that matters was sent before
	now := time.Now()
	if s.send(now) != nil {
		return // the connection is gone
	}
	copyDone, terminate := []byte{'c', 0, 0, 0, 4}, []byte{'X', 0, 0, 0, 4}
	if s.wire.write(append(copyDone, terminate...)) != nil {
		return
	}
	for deadline := now.Add(closeWait); ; {
		if s.wire.setDeadline(deadline) != nil {
			return
		}
		if _, err := s.wire.waitRead(s.buf); err != nil {
			return // the server has closed, or is busy sending a large transaction
		}
	}
}
