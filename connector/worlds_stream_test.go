package connector

import (
	"context"
	"encoding/binary"
	"errors"
	"sort"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

const worldOID = 16999

var worldColumns = decoder.Columns{ID: "id", AggregateType: "aggregate_type", AggregateID: "aggregate_id", EventType: "event_type", Payload: "payload", MaxRetries: "max_retries"}

// worldStream is a replication connection to the world's PostgreSQL.
type worldStream struct {
	p       *worldProcess
	w       *simulation
	random  random
	tracked replication.Progress
	from    pglogrepl.LSN
	at      int // transactions of the WAL before this one were sent
	frames  []replication.Frame
	rest    []byte                // of a large message
	sent    pglogrepl.LSN         // confirmed
	asked   atomic.Bool           // somebody wants a keepalive
	failed  chan struct{}         // closed by fail
	why     atomic.Pointer[error] // why it has failed
	closed  bool
	silence time.Time // the next keepalive
	waited  time.Duration
	done    atomic.Int64 // transactions that were read to their end
}

// newWorldStream makes the stream of the process's session. The world's lock is held.
func newWorldStream(p *worldProcess, from pglogrepl.LSN) *worldStream {
	w := p.w
	s := &worldStream{p: p, w: w, random: w.random("stream", p.session), from: from, failed: make(chan struct{})}
	s.at = sort.Search(len(w.wal), func(i int) bool { return w.wal[i].commit >= from })
	s.done.Store(int64(s.at))
	s.frames = append(s.frames, replication.Frame{Data: worldRelation()})
	return s
}

// fail lets the stream end with this error. errWorldBroken and errWorldKill say that the connection is lost.
func (s *worldStream) fail(why error) {
	if s.why.CompareAndSwap(nil, &why) {
		close(s.failed)
	}
}

// failure returns why the stream has failed, or nil.
func (s *worldStream) failure() error {
	if why := s.why.Load(); why != nil {
		return *why
	}
	return nil
}

// Track does what replication.Stream's does.
func (s *worldStream) Track(p replication.Progress) {
	s.tracked = p
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.stats.Sessions++
}

// Fast does what replication.Stream's does.
func (s *worldStream) Fast() bool { return s.w.cfg.fast }

// AskKeepalive does what replication.Stream's does.
func (s *worldStream) AskKeepalive() {
	s.asked.Store(true)
	s.w.noteGrowth()
}

// Broken does what replication.Stream's does.
func (s *worldStream) Broken() bool {
	why := s.failure()
	return s.closed || errors.Is(why, errWorldBroken) || errors.Is(why, errWorldKill)
}

// Close does what replication.Stream's does.
func (s *worldStream) Close() {
	if !s.Broken() {
		s.report()
	}
	s.closed = true
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.p.link.isWhole() {
		s.w.release(s)
	} else { // the server does not hear of it
		s.w.after(worldSenderTimeout, func() {
			s.w.mu.Lock()
			defer s.w.mu.Unlock()
			s.w.release(s)
		})
	}
}

// Buffered does what replication.Stream's does.
func (s *worldStream) Buffered() bool { return len(s.frames) > 0 }

// Wait does what replication.Stream's does.
func (s *worldStream) Wait() time.Duration { return s.random.between(50*time.Millisecond, timeUnit) }

// Waited does what replication.Stream's does.
func (s *worldStream) Waited() time.Duration { return s.waited }

// Report does what replication.Stream's does.
func (s *worldStream) Report() error {
	if err := s.failure(); err != nil {
		return err
	}
	s.report()
	return nil
}

// report sends the confirmed LSN. The server gets it a little later.
func (s *worldStream) report() {
	if s.tracked == nil || !s.p.link.isWhole() {
		return
	}
	if lsn := s.tracked.Confirmed(); lsn > s.sent {
		s.sent = lsn
		s.tracked.Reported(lsn, time.Now(), time.Now())
		s.w.after(s.random.between(0, timeUnit), func() { s.w.confirm(lsn) })
	}
}

// Next does what replication.Stream's does.
func (s *worldStream) Next(ctx context.Context) (replication.Frame, error) {
	began := time.Now()
	defer func() { s.waited += time.Since(began) }()
	if err := s.p.runs(ctx); err != nil {
		return replication.Frame{}, err
	}
	for len(s.frames) == 0 {
		s.done.Store(int64(s.at))
		if err := s.Report(); err != nil {
			return replication.Frame{}, err
		}
		if s.fill() {
			break
		}
		t := time.NewTimer(s.Wait())
		select {
		case <-s.w.walGrew:
		case <-t.C:
		case <-s.failed:
		case <-ctx.Done():
			t.Stop()
			return replication.Frame{}, context.Cause(ctx)
		}
		t.Stop()
	}
	if s.random.chance(0.2) && !slept(ctx, s.random.between(0, timeUnit/5)) {
		return replication.Frame{}, context.Cause(ctx)
	}
	f := s.frames[0]
	s.frames = s.frames[1:]
	if !f.Keepalive && f.Data[0] == 'I' && s.random.chance(0.1) { // as if it did not fit into the buffer
		s.rest = f.Data[8:]
		f.Data, f.Rest = f.Data[:8], len(s.rest)
	}
	return f, nil
}

// More does what replication.Stream's does.
func (s *worldStream) More(ctx context.Context) ([]byte, error) {
	began := time.Now()
	defer func() { s.waited += time.Since(began) }()
	if s.random.chance(0.1) && !slept(ctx, s.random.between(0, timeUnit)) {
		return nil, context.Cause(ctx)
	}
	if err := s.Report(); err != nil {
		return nil, err
	}
	n := min(len(s.rest), 20)
	b := s.rest[:n]
	s.rest = s.rest[n:]
	return b, nil
}

// fill makes frames of the next transaction, or of a keepalive if nothing was sent for a while. It reports whether there was anything.
func (s *worldStream) fill() bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	switch now := time.Now(); {
	case !s.w.pgUp || !s.p.link.isWhole() || s.w.slot.user != s:
		return false
	case s.at < len(s.w.wal):
		s.transaction(s.w.wal[s.at])
		s.at++
		s.silence = now.Add(s.random.between(timeUnit, 30*timeUnit))
		return true
	case now.Before(s.silence) && !s.asked.Swap(false):
		return false
	default:
		s.silence = now.Add(s.random.between(timeUnit, 30*timeUnit))
		s.frames = append(s.frames, replication.Frame{Keepalive: true, LSN: s.w.end})
		return true
	}
}

func (s *worldStream) transaction(tx *worldTx) {
	micros := uint64(tx.at.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds())
	b := binary.BigEndian.AppendUint64([]byte{'B'}, uint64(tx.commit))
	b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, micros), 1)
	s.frames = append(s.frames, replication.Frame{Data: b})
	for _, e := range tx.events {
		if s.random.chance(0.02) {
			s.frames = append(s.frames, replication.Frame{Keepalive: true, LSN: tx.commit})
		}
		s.frames = append(s.frames, replication.Frame{Data: worldInsert(e)})
	}
	b = binary.BigEndian.AppendUint64([]byte{'C', 0}, uint64(tx.commit))
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(tx.end)), micros)
	s.frames = append(s.frames, replication.Frame{Data: b})
}

func worldRelation() []byte {
	c := worldColumns
	b := binary.BigEndian.AppendUint32([]byte{'R'}, worldOID)
	b = append(b, "public\x00event_outbox\x00d\x00\x06"...)
	for _, name := range []string{c.ID, c.AggregateType, c.AggregateID, c.EventType, c.Payload, c.MaxRetries} {
		b = append(append(append(b, 0), name...), 0)
		oid := uint32(pgtype.TextOID)
		if name == c.MaxRetries {
			oid = pgtype.Int4OID
		}
		b = binary.BigEndian.AppendUint32(b, oid)
		b = binary.BigEndian.AppendUint32(b, 0xffffffff)
	}
	return b
}

func worldInsert(e *worldEvent) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'I'}, worldOID)
	b = append(b, 'N', 0, 6)
	for _, v := range []string{e.id, "t", e.aggregate, e.eventType(), e.payload()} {
		b = append(binary.BigEndian.AppendUint32(append(b, 't'), uint32(len(v))), v...)
	}
	if e.retries == "" {
		return append(b, 'n')
	}
	return append(binary.BigEndian.AppendUint32(append(b, 't'), uint32(len(e.retries))), e.retries...)
}
