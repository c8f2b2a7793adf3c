package e2e

import (
	"bytes"
	"encoding/binary"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// tap listens on the wire between a connector and PostgreSQL, and stops it at a moment: what belongs to that moment is
// held in the proxy, so that the connector can be killed before it goes on.
type tap struct {
	proxy *servers.Proxy

	mu      sync.Mutex
	streams map[stream]*framer
	copied  map[int]bool // connections that have sent rows for the log and not yet their COMMIT
	skips   map[int]bool // connections of "skip" that have moved the checkpoint or asked to move the slot, and have no answer yet
	moment  moment
	beyond  pglogrepl.LSN // a status counts when it confirms more than this
	settled bool          // COMMIT was answered
	hit     chan pglogrepl.LSN
	hold    bool // once hit, whatever else reaches the moment is held as well
}

type stream struct {
	conn int
	dir  servers.Direction
}

// moment is a step between a sink's acceptance and the confirmation of the slot.
type moment string

const (
	beforeCopy   moment = "before COPY"
	beforeCommit moment = "between COPY and COMMIT"
	beforeStatus moment = "between COMMIT and status"
	afterStatus  moment = "after status"
)

// The steps of "skip". Each is held on its way, so the process has not gone on when it is killed.
const (
	skipReads       moment = "before it reads the stream"
	skipWrites      moment = "before it writes into the log"
	skipCommits     moment = "before it commits the checkpoint"
	skipIsCommitted moment = "before it knows that the checkpoint is committed"
	skipMovesSlot   moment = "before it moves the slot"
	skipHasMoved    moment = "before it knows that the slot has moved"
)

func newTap(t testing.TB, address string) *tap {
	t.Helper()
	proxy, err := servers.NewProxy(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &tap{proxy: proxy, streams: map[stream]*framer{}, copied: map[int]bool{}, skips: map[int]bool{}}
	proxy.SetHook(p.see)
	return p
}

// arm waits for the next time that m is reached, with statuses counting that confirm more than beyond. What is sent
// on the returned channel is the position of the status, or 0.
func (p *tap) arm(m moment, beyond pglogrepl.LSN) <-chan pglogrepl.LSN {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m != p.moment {
		p.settled = false
	}
	p.moment, p.beyond, p.hold = m, beyond, false
	p.hit = make(chan pglogrepl.LSN, 1)
	return p.hit
}

// disarm drops what is held together with all connections, and lets everything pass from now on.
func (p *tap) disarm() {
	p.mu.Lock()
	p.moment, p.settled = "", false
	p.mu.Unlock()
	p.proxy.Cut()
}

func (p *tap) see(dir servers.Direction, conn int, data []byte) servers.Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := stream{conn, dir}
	f := p.streams[s]
	if f == nil {
		f = &framer{startup: dir == servers.ToServer}
		p.streams[s] = f
	}
	verdict := servers.Forward
	f.feed(data, func(kind byte, start []byte) {
		if p.reached(s, kind, start) {
			verdict = servers.Hold
		}
	})
	return verdict
}

// reached follows the recorder, the stream and "skip", and says whether this message is to be held.
func (p *tap) reached(s stream, kind byte, start []byte) bool {
	if m := p.skipping(s, kind, start); m != "" && m == p.moment { // the recorder's statements look alike
		return p.strike(0)
	}
	switch {
	case s.dir == servers.ToServer && kind == 'Q':
		sql := strings.ToLower(string(bytes.TrimRight(start, "\x00")))
		switch {
		case strings.HasPrefix(sql, "copy ") && strings.Contains(sql, ".outbox_delivery_log "):
			p.copied[s.conn] = true
			return p.moment == beforeCopy && p.strike(0)
		case sql == "commit" && p.copied[s.conn]:
			return p.moment == beforeCommit && p.strike(0)
		}
	case s.dir == servers.ToClient && kind == 'C' && p.copied[s.conn] && strings.HasPrefix(string(start), "COMMIT"):
		p.copied[s.conn] = false
		p.settled = true
	case s.dir == servers.ToServer && kind == 'd' && len(start) >= 17 && start[0] == 'r':
		flushed := pglogrepl.LSN(binary.BigEndian.Uint64(start[9:]))
		if !p.settled || flushed <= p.beyond {
			return false
		}
		switch p.moment {
		case beforeStatus:
			return p.strike(flushed)
		case afterStatus:
			p.strike(flushed)
		}
	}
	return false
}

// skipping returns the step of "skip" that this message belongs to.
func (p *tap) skipping(s stream, kind byte, start []byte) moment {
	if s.dir == servers.ToClient {
		if kind == 'C' && p.skips[s.conn] {
			switch tag, _, _ := strings.Cut(string(start), " "); strings.TrimRight(tag, "\x00") {
			case "COMMIT":
				return skipIsCommitted
			case "SELECT":
				return skipHasMoved
			}
		}
		return ""
	}
	if kind == 'P' { // behind the name of the statement
		_, start, _ = bytes.Cut(start, []byte{0})
	} else if kind != 'Q' {
		return ""
	}
	sql := strings.ToLower(string(bytes.TrimRight(start, "\x00")))
	switch {
	case strings.HasPrefix(sql, "start_replication "):
		return skipReads
	case strings.HasPrefix(sql, "insert into ") && strings.Contains(sql, ".outbox_delivery_log "):
		return skipWrites
	case strings.HasPrefix(sql, "update ") && strings.Contains(sql, ".outbox_checkpoints set prefix_lsn"):
		p.skips[s.conn] = true
	case sql == "commit" && p.skips[s.conn]:
		return skipCommits
	case strings.Contains(sql, "pg_replication_slot_advance("):
		p.skips[s.conn] = true
		return skipMovesSlot
	}
	return ""
}

func (p *tap) strike(at pglogrepl.LSN) bool {
	if !p.hold {
		p.hold = true
		p.hit <- at
	}
	return true
}

// await returns what arm's channel says.
func await(t testing.TB, m moment, hit <-chan pglogrepl.LSN) pglogrepl.LSN {
	t.Helper()
	select {
	case at := <-hit:
		return at
	case <-time.After(20 * time.Second):
		t.Fatalf("the moment %s did not come", m)
		return 0
	}
}

// framer cuts one direction of a connection into messages, of which it keeps the start. It knows no TLS.
type framer struct {
	startup bool // the first message has no type
	head    []byte
	body    int // bytes of the message that are still to come
}

// enough is as much of a message as anybody looks at.
const enough = 256

func (f *framer) feed(data []byte, message func(kind byte, start []byte)) {
	for len(data) > 0 {
		if f.body > 0 { // in the rest of a message that was told of already
			n := min(f.body, len(data))
			data, f.body = data[n:], f.body-n
			continue
		}
		f.head = append(f.head, data[0])
		data = data[1:]
		skip := 5
		if f.startup {
			skip = 4
		}
		if len(f.head) < skip {
			continue
		}
		length := int(binary.BigEndian.Uint32(f.head[skip-4:])) - 4 // of the body
		if len(f.head) < skip+min(length, enough) {
			continue
		}
		if !f.startup {
			message(f.head[0], f.head[5:])
		}
		f.body = length - (len(f.head) - skip)
		f.head, f.startup = f.head[:0], false
	}
}
