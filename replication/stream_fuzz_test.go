package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"
)

// FuzzStream feeds the stream with arbitrary bytes, which arrive in arbitrary pieces. It compares the result with that of a model
// that has all bytes at once. cuts says how large the pieces are, and which large messages are skipped.
func FuzzStream(f *testing.F) {
	seed := func(cuts string, messages ...[]byte) { f.Add(bytes.Join(messages, nil), []byte(cuts)) }
	seed("", xlog("one"), keepalive(7, 1), xlog(""), message('N', []byte("SNOTICE\x00\x00")), message('S', nil), message('c', nil))
	seed("\x01\x02\x03", xlog("one"), xlog("two"), keepalive(9, 0), message('E', []byte("SFATAL\x00C57P01\x00Mgone\x00\x00")))
	seed("\x00\x07", message('N', []byte("SNOTICE\x00RLoadPublications\x00\x00")))
	seed("0", message('N', bytes.Repeat([]byte("0"), 27)), message('E', []byte("S")))
	seed("\x05", bytes.Repeat(keepalive(7, 1), 12))
	seed("\xff\x00", []byte("d\x7f\xff\xff\xff"), []byte("d\x00\x00\x00\x03"), []byte("x\x00\x00\x00\x04"))
	seed("\x10\xff", message('d', []byte("w")), xlog("never"))
	for _, size := range []int{readBuffer - 31, readBuffer - 30, readBuffer - 29, 3 * readBuffer} {
		large := xlog(string(bytes.Repeat([]byte("x"), size)))
		seed("\xff\xfe", xlog("a"), compress(large), xlog("b"))
		seed("\x01", compress(large), compress(large), keepalive(1, 0))
		seed("\x40", compress(message('d', append([]byte("k"), large...))))
		seed("\x80", compress(message('N', large)), xlog("never"))
	}
	f.Fuzz(func(t *testing.T, text, cuts []byte) {
		in := expand(text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		checkStream(t, in, cuts)
		runtime.ReadMemStats(&after)
		// This is enough for the buffer, for a copy of what the test puts together, for a decoded error or notice, and for the fuzzer
		// itself.
		if used, most := after.TotalAlloc-before.TotalAlloc, uint64(8*len(in)+4<<20); used > most {
			t.Errorf("%d bytes were allocated for %d of input", used, len(in))
		}
	})
}

const runMark = 0xfe // followed by n: n+1 times 4 KiB of filler

// expand makes a long input from a short one: it replaces each run mark by a run of filler.
func expand(text []byte) []byte {
	var out []byte
	for i := 0; i < len(text) && len(out) < 1<<20; i++ {
		if text[i] == runMark && i+1 < len(text) {
			out = append(out, bytes.Repeat([]byte("x"), (int(text[i+1])+1)<<12)...)
			i++
			continue
		}
		out = append(out, text[i])
	}
	return out
}

// compress is the reverse of expand, for inputs with runs of x.
func compress(b []byte) []byte {
	run := bytes.Repeat([]byte("x"), 1<<12)
	return bytes.ReplaceAll(b, run, []byte{runMark, 0})
}

// pieces is a wire on which the input arrives in pieces.
type pieces struct {
	in, cuts []byte
	at       int
	least    int // bytes of a piece at least: byte by byte, a long input would take too long
}

func (p *pieces) cut() int {
	if len(p.cuts) == 0 {
		return 1 << 16
	}
	c := int(p.cuts[p.at%len(p.cuts)])
	p.at++
	if c >= 0xf0 {
		return (c - 0xef) << 14
	}
	if c > 0 {
		c = max(c, p.least)
	}
	return c
}

func (p *pieces) tryRead(b []byte) (int, error) {
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.cut())], p.in)
	p.in = p.in[n:]
	return n, nil
}

func (p *pieces) waitRead(b []byte) (int, error) {
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), max(1, p.least))], p.in)
	p.in = p.in[n:]
	return n, nil
}

func (p *pieces) setDeadline(time.Time) error { return nil }
func (p *pieces) pause(time.Duration)         {}
func (p *pieces) write([]byte) error          { return nil }
func (p *pieces) interrupt()                  {}
func (p *pieces) close() error                { return nil }

// modelled is what the model finds next: a message for the reader of the stream, or the end.
type modelled struct {
	frame   Frame  // Data is the whole message, or as much of it as there is
	large   bool   // the message does not fit into the buffer
	request bool   // a reply was requested
	end     string // "" if there is a frame, "eof" if there are no more bytes, otherwise why the stream must end
}

// model reads the first message of b.
func model(b []byte) (m modelled, rest []byte, interesting bool) {
	end := func(why string) (modelled, []byte, bool) { return modelled{end: why}, nil, true }
	if len(b) < 5 {
		return end("eof")
	}
	kind, n := b[0], int(binary.BigEndian.Uint32(b[1:]))+1
	switch {
	case n < 5 || n > maxMessage || n > readBuffer && kind != 'd':
		return end("length")
	case n > readBuffer && len(b) < largeHead:
		return end("eof")
	case n > readBuffer && b[5] != 'w':
		return end("copy data")
	case n > readBuffer:
		m = modelled{frame: Frame{Data: b[30:min(n, len(b))]}, large: true}
		return m, b[min(n, len(b)):], true
	case len(b) < n:
		return end("eof")
	}
	body, rest := b[5:n], b[n:]
	switch {
	case kind == 'd' && len(body) >= 25 && body[0] == 'w':
		return modelled{frame: Frame{Data: body[25:]}}, rest, true
	case kind == 'd' && len(body) >= 18 && body[0] == 'k':
		lsn := pglogrepl.LSN(binary.BigEndian.Uint64(body[1:]))
		return modelled{frame: Frame{Keepalive: true, LSN: lsn}, request: body[17] != 0}, rest, true
	case kind == 'S':
		return m, rest, false
	case kind == 'N':
		var notice pgproto3.NoticeResponse
		if err := notice.Decode(body); err != nil || notice.Routine == "LoadPublications" {
			return end("notice")
		}
		return m, rest, false
	}
	return end("message")
}

func checkStream(t *testing.T, in, cuts []byte) {
	s := newStream(&pieces{in: in, cuts: cuts, least: len(in) >> 10}, time.Hour)
	var asked pglogrepl.LSN
	requests, left := 0, in
	for i := 0; ; i++ {
		want, rest, interesting := model(left)
		for left = rest; !interesting; left = rest {
			want, rest, interesting = model(left)
		}
		if want.request {
			if requests++; want.frame.LSN != asked {
				asked, requests = want.frame.LSN, 1
			}
		}
		f, err := s.Next(t.Context())
		if len(s.buf) != readBuffer {
			t.Fatalf("message %d: the buffer has %d bytes", i, len(s.buf))
		}
		if err != nil {
			impatient := want.request && requests >= stopRequests && errors.Is(err, ErrServerStopping)
			if want.end == "" && !impatient || want.end == "eof" != errors.Is(err, io.EOF) && !impatient {
				t.Fatalf("message %d: %v, want a frame of %d bytes, or the end %q", i, err, len(want.frame.Data), want.end)
			}
			if !s.Broken() {
				t.Fatalf("message %d: %v, and the stream is not broken", i, err)
			}
			return
		}
		if want.end != "" {
			t.Fatalf("message %d: a frame of %d bytes, want the end: %s", i, len(f.Data), want.end)
		}
		if f.Keepalive != want.frame.Keepalive || f.LSN != want.frame.LSN {
			t.Fatalf("message %d: keepalive %t %s, want %t %s", i, f.Keepalive, f.LSN, want.frame.Keepalive, want.frame.LSN)
		}
		if !want.large {
			if f.Rest != 0 || !bytes.Equal(f.Data, want.frame.Data) {
				t.Fatalf("message %d: %d bytes and %d more, want %d", i, len(f.Data), f.Rest, len(want.frame.Data))
			}
			continue
		}
		if len(f.Data) < 8 || !bytes.HasPrefix(want.frame.Data, f.Data) {
			t.Fatalf("message %d: the first %d bytes are others than those of the model's %d", i, len(f.Data), len(want.frame.Data))
		}
		if len(cuts) > 0 && cuts[i%len(cuts)]&1 != 0 {
			continue // the rest is skipped
		}
		got := append(make([]byte, 0, len(want.frame.Data)), f.Data...)
		for more := f.Rest; more > 0; {
			b, err := s.More(t.Context())
			if err != nil {
				if !errors.Is(err, io.EOF) || len(left) != 0 || !bytes.Equal(got, want.frame.Data) || !s.Broken() {
					t.Fatalf("message %d: %v after %d of the %d bytes that there are", i, err, len(got), len(want.frame.Data))
				}
				return
			}
			if len(b) == 0 || len(b) > more {
				t.Fatalf("message %d: %d bytes of a rest of %d", i, len(b), more)
			}
			got, more = append(got, b...), more-len(b)
		}
		if !bytes.Equal(got, want.frame.Data) {
			t.Fatalf("message %d: %d bytes, others than the %d of the model", i, len(got), len(want.frame.Data))
		}
	}
}
