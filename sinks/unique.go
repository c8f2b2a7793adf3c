package sinks

import (
	"fmt"
	"strings"
)

// Origin returns the Message.Origin of the events of a table: its database, schema and name with colons between them.
// No two tables of a server have the same origin.
func Origin(database, schema, table string) string {
	name := func(s string) string { return strings.ReplaceAll(plainID(s), ":", "%3A") }
	return name(database) + ":" + name(schema) + ":" + name(table)
}

// UniqueID returns the id by which a destination recognises a message that it has already: for Nats-Msg-Id, webhook-id or
// Idempotency-Key. It is the same for each try, and after each restart.
//
// An id that is written as a uuid is unique by itself and stays as it is. The type of its column does not matter, so
// the UniqueID does not change when that type does. Any other id is unique only within its table, so it follows Origin,
// as in shop:public:orders_outbox:101.
//
// A UniqueID consists of visible ASCII characters, and of spaces that are neither first nor last. It contains no dot,
// because Standard Webhooks forbid it. A percent sign occurs only as part of %XX, which stands for any other byte.
func (m *Message) UniqueID() string {
	id := m.Event.ID
	switch {
	case isUUID(id):
		return id
	case m.Origin == "":
		return plainID(id)
	}
	return m.Origin + ":" + plainID(id)
}

// isUUID reports whether s is written as PostgreSQL writes a uuid. Capital letters are allowed too.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	return true
}

// plainID writes as %XX every byte that is no visible ASCII character, every dot and every percent sign. It does so
// with a space only at the beginning or the end, where headers do not keep it. Different texts have different results.
func plainID(s string) string {
	isPlain := func(i int) bool {
		switch c := s[i]; c {
		case ' ':
			return i > 0 && i < len(s)-1
		case '%', '.':
			return false
		default:
			return c > ' ' && c <= '~'
		}
	}
	i := 0
	for i < len(s) && isPlain(i) {
		i++
	}
	if i == len(s) {
		return s
	}
	var out strings.Builder
	out.WriteString(s[:i])
	for ; i < len(s); i++ {
		if isPlain(i) {
			out.WriteByte(s[i])
		} else {
			fmt.Fprintf(&out, "%%%02X", s[i])
		}
	}
	return out.String()
}
