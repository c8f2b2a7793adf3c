package decoder

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

var errShort = errors.New("it ends too early")

// reader reads a message from front to back. When no bytes are left it returns zeros, and end returns an error.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.short, r.rest = true, nil
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// string reads up to the next zero byte.
func (r *reader) string() string {
	n := bytes.IndexByte(r.rest, 0)
	if n < 0 {
		r.take(len(r.rest) + 1)
		return ""
	}
	return string(r.take(n + 1)[:n])
}

// postgresEpoch is 2000-01-01 UTC in microseconds of Unix time.
const postgresEpoch = 946_684_800_000_000

func (r *reader) time() time.Time {
	return time.UnixMicro(int64(r.uint64()) + postgresEpoch).UTC()
}

// end returns an error unless exactly the whole message was read.
func (r *reader) end() error {
	if r.short {
		return errShort
	}
	if len(r.rest) > 0 {
		return fmt.Errorf("%d bytes are left over at its end", len(r.rest))
	}
	return nil
}
